"""Published: scores that others reached in the same game, to be drawn beside a run's own curve.

Atari: Mnih et al. 2015 (Human-level control through deep reinforcement learning, Nature 518), Extended Data Table 2:
a random player, a professional tester, and DQN after 50 M frames evaluated with ε = 0.05. Others: the return at which
Gymnasium's registry says that the game is solved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium

# game: random, human, DQN
_ATARI = """
Alien 227.8 6875 3069, Amidar 5.8 1676 739.5, Assault 222.4 1496 3359, Asterix 210 8503 6012,
Asteroids 719.1 13157 1629, Atlantis 12850 29028 85641, BankHeist 14.2 734.4 429.7, BattleZone 2360 37800 26300,
BeamRider 363.9 5775 6846, Bowling 23.1 154.8 42.4, Boxing 0.1 4.3 71.8, Breakout 1.7 31.8 401.2,
Centipede 2091 11963 8309, ChopperCommand 811 9882 6687, CrazyClimber 10781 35411 114103, DemonAttack 152.1 3401 9711,
DoubleDunk -18.6 -15.5 -18.1, Enduro 0 309.6 301.8, FishingDerby -91.7 5.5 -0.8, Freeway 0 29.6 30.3,
Frostbite 65.2 4335 328.3, Gopher 257.6 2321 8520, Gravitar 173 2672 306.7, Hero 1027 25763 19950,
IceHockey -11.2 0.9 -1.6, Jamesbond 29 406.7 576.7, Kangaroo 52 3035 6740, Krull 1598 2395 3805,
KungFuMaster 258.5 22736 23270, MontezumaRevenge 0 4367 0, MsPacman 307.3 15693 2311, NameThisGame 2292 4076 7257,
Pong -20.7 9.3 18.9, PrivateEye 24.9 69571 1788, Qbert 163.9 13455 10596, Riverraid 1339 13513 8316,
RoadRunner 11.5 7845 18257, Robotank 2.2 11.9 51.6, Seaquest 68.4 20182 5286, SpaceInvaders 148 1652 1976,
StarGunner 664 10250 57997, Tennis -23.8 -8.9 -2.5, TimePilot 3568 5925 5947, Tutankham 11.4 167.6 186.7,
UpNDown 533.4 9082 8456, Venture 0 1188 380, VideoPinball 16257 17298 42684, WizardOfWor 563.5 4757 3393,
Zaxxon 32.5 9173 4977
"""
ATARI = {name: tuple(map(float, scores)) for name, *scores in map(str.split, _ATARI.split(","))}


class Published(NamedTuple):
    """What to compare a return with."""

    scores: Mapping[str, float] = {}
    source: str = ""


def published(settings: Mapping[str, Any]) -> Published:
    """Scores for the game named by the setting `env_id`; empty where none are known.

    >>> published({"env_id": "ALE/Pong-v5"}).scores
    {'random': -20.7, 'human': 9.3, 'DQN (2015)': 18.9}
    """
    env_id = str(settings.get("env_id", ""))
    if (game := env_id.removeprefix("ALE/").split("-")[0].removesuffix("NoFrameskip")) in ATARI:
        scores = dict(zip(("random", "human", "DQN (2015)"), ATARI[game], strict=True))
        return Published(scores, "Mnih et al. 2015, Extended Data Table 2; DQN after 50 M frames")
    spec = gymnasium.registry.get(env_id)
    if spec is None or spec.reward_threshold is None:
        return Published()
    return Published({"solved": float(spec.reward_threshold)}, f"reward threshold of {env_id} in Gymnasium's registry")
