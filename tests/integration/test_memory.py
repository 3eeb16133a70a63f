"""Memory: a million steps of Atari fit where they are said to fit, measured on some and counted up."""

import torch

from tinyverse import TorchAgent
from tinyverse.database.connection import connect
from tinyverse.database.redis import RedisDatabase
from tinyverse.envs.atari import atari_pool
from tinyverse.experiment.experiment import session_spec
from tinyverse.networks import ModularNetwork, NatureConv, Window
from tinyverse.player.player import Player
from tinyverse.replay.buffer import Replay
from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.samplers import Fresh

torch.set_num_threads(1)

STEPS, GAMES, BATCHES = 20, 8, 10
SESSIONS_OF_A_MILLION = 1_000_000 // STEPS


def test_a_million_steps_of_pong_fit_in_200_mb_of_redis_and_8_6_gb_of_device_memory(redis_server, redis_url):
    pool = atari_pool("pong", GAMES)
    agent = TorchAgent(ModularNetwork(pool.observation_space, pool.action_space, trunk=Window(4, NatureConv())))
    player, database = Player(agent, pool, STEPS), RedisDatabase(redis_url, "a-million")
    spec = session_spec(pool.observation_space, pool.action_space, agent, STEPS)
    database.create({})
    database.report(capacity=SESSIONS_OF_A_MILLION)
    admin = connect(redis_server.admin_url)
    before = admin.info("memory")["used_memory"]
    for number in range(BATCHES):
        database.append([session.encode() for session in player.play().sessions("p", number * GAMES)])
    each = (admin.info("memory")["used_memory"] - before) / (GAMES * BATCHES)
    pool.close()
    assert 1_000 < each < 200e6 / SESSIONS_OF_A_MILLION
    replay = Replay(spec, ReplayConfig(batch_size=8, buffer_size=8), Fresh())
    assert replay.nbytes / 8 < 8.6e9 / SESSIONS_OF_A_MILLION
