"""Database: where players and trainers meet. One interface (`base`), in Redis or in memory."""
