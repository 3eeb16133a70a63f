"""PlayerQuota: how much of what is learned from may come from one player while others play.

A player that went wild floods the replay with its own sessions. The quota counts the newest arrivals, refused ones too: so
a player that is alone, or alone again, is free. It helps against mistakes, not malice: a player says itself who it is.
"""

from __future__ import annotations

from collections import Counter, deque

from tinyverse.core.errors import SettingsError

WINDOW = 1000  # sessions


class PlayerQuota:
    """Admits sessions, player by player.

    Args:
        most: the share (0 … 1) of the admitted sessions that one player may have; 1: any.
        window: newest sessions that are counted.
    """

    def __init__(self, most: float = 1.0, window: int = WINDOW) -> None:
        if not 0 < most <= 1:
            raise SettingsError(f"player_share is {most}; give more than 0 and at most 1, which admits all.")
        self.most = most
        self._came: deque[tuple[str, bool]] = deque(maxlen=window)
        self._players: Counter[str] = Counter()  # sessions that came
        self._admitted: Counter[str] = Counter()

    def admit(self, player: str) -> bool:
        """Whether the trainer keeps the next session of this player."""
        if self.most >= 1:
            return True
        if len(self._came) == self._came.maxlen:
            self._forget(*self._came[0])
        others = self._admitted.total() - self._admitted[player]
        alone = len(self._players.keys() - {player}) == 0
        admitted = alone or self._admitted[player] + 1 <= max(1.0, self.most * (self._admitted[player] + 1 + others))
        self._came.append((player, admitted))
        self._players[player] += 1
        self._admitted[player] += admitted
        return admitted

    def _forget(self, player: str, admitted: bool) -> None:
        for counts, count in ((self._players, 1), (self._admitted, int(admitted))):
            counts[player] -= count
            if not counts[player]:
                del counts[player]
