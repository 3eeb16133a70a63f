"""Pools of every source of environments give the rows that design and docstring draw."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorObservationWrapper

from tests.helpers.counting import BUTTONS, CountingAgent, CountingEnv, clock, counting_vector, reward_of, truncates
from tests.helpers.sources import GAMES, IN_PROCESSES, SOURCE_PARAMS, SOURCES, UNSEEDED, Passing, asynchronous
from tinyverse.core.errors import ExperimentError, SpecError
from tinyverse.envs import Pool, SerialPool, VectorPool, pool_of
from tinyverse.envs.adapters import MultiAgentAdapter

STEPS = 120


@pytest.fixture(scope="module")
def kept() -> Any:
    """Pools whose environments are processes, by source: the next test resets them, which costs less than new ones."""
    pools: dict[str, Pool] = {}
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.fixture(params=SOURCE_PARAMS)
def pool(request: pytest.FixtureRequest, kept: dict[str, Pool]) -> Any:
    source = request.param
    pool = kept.pop(source, None) or SOURCES[source]()
    yield pool
    if source in IN_PROCESSES:
        kept[source] = pool
    else:
        pool.close()


def test_a_wrapper_is_not_gone_past() -> None:
    env = Passing(asynchronous())
    pool = VectorPool(env)
    pool.reset(0)
    pool.step(np.zeros(GAMES, np.int64))
    pool.send(np.zeros(GAMES, np.int64))
    pool.receive()
    pool.close()
    assert hasattr(env, "step_wait") and env.steps == 2


def test_rows_are_those_of_the_drawing(pool: Pool) -> None:
    rng = np.random.default_rng(0)
    before, ended = clock(pool.reset(seed=7)).copy(), np.zeros(GAMES, bool)
    assert (before[:, :2] == 0).all()
    ends = np.zeros(2, int)
    for _ in range(STEPS):
        button = rng.integers(BUTTONS, size=GAMES)
        nested = isinstance(pool.action_space, spaces.Dict)
        actions = {"button": button, "stick": np.full((GAMES, 2), 9.0)} if nested else button
        observations, rewards, terminated, truncated, _ = pool.step(actions)
        now = clock(observations)
        assert rewards.dtype == np.float32 and terminated.dtype == truncated.dtype == bool
        for game in range(GAMES):
            episode, step, tag = now[game]
            assert tag == before[game, 2], "an environment's row holds another environment"
            if ended[game] and truncated[game]:  # an agent waits for the others
                assert isinstance(pool, SerialPool) and isinstance(pool._envs[0], MultiAgentAdapter)
                assert (now[game] == before[game]).all() and rewards[game] == 0
                continue
            if ended[game]:
                assert episode > before[game, 0] and step == 0, "the row after an end is not a reset"
                assert (rewards[game], terminated[game], truncated[game]) == (0, False, False)
            else:
                assert (episode, step) == (before[game, 0], before[game, 1] + 1)
                assert rewards[game] == reward_of(episode, before[game, 1], button[game])
            assert not (truncated if not truncates(episode) else terminated)[game]
        ended, before = terminated | truncated, now.copy()
        ends += terminated.sum(), truncated.sum()
    assert (ends > GAMES).all(), "too few ends to prove anything"


def test_the_state_counts_what_the_observation_says(pool: Pool) -> None:
    agent = CountingAgent(pool.observation_space, pool.action_space)
    observations, state, first = pool.reset(seed=1), agent.initial_state(GAMES), np.ones(GAMES, bool)
    ended = np.zeros(GAMES, bool)
    for _ in range(STEPS):
        actions, state, extras = agent.act(observations, state, first)
        waits = ended & first  # an agent that is out, while others play on
        np.testing.assert_array_equal(extras["count"][~waits], clock(observations)[~waits, 1])
        observations, _, terminated, truncated, _ = pool.step(actions)
        first, ended = ended, terminated | truncated


@pytest.mark.parametrize("pool", [one for one in SOURCE_PARAMS if one.values[0] not in UNSEEDED], indirect=True)
def test_equal_seeds_give_equal_games_and_unequal_ones_do_not(pool: Pool, request: pytest.FixtureRequest) -> None:
    def play(pool: Pool, seed: int) -> np.ndarray:
        agent = CountingAgent(pool.observation_space, pool.action_space)
        rows = [clock(pool.reset(seed)).copy()]
        for _ in range(20):
            actions = agent.act(rows[-1], agent.initial_state(GAMES), np.ones(GAMES, bool))[0]
            rows.append(clock(pool.step(actions).observations).copy())
        return np.stack(rows)

    played = [play(pool, seed) for seed in (3, 4, 5, 3)]
    anew = SOURCES[request.node.callspec.params["pool"]]()
    np.testing.assert_array_equal(played[0], play(anew, 3))
    np.testing.assert_array_equal(played[0], played[3])
    anew.close()
    tags = np.concatenate([rows[0, :, 2] for rows in played[:3]])
    assert len(set(tags.tolist())) == 3 * GAMES, "neighbouring seeds share environments"


def test_reset_in_the_middle_forgets_that_games_had_ended() -> None:
    for make in (SOURCES["environments"], SOURCES["next step"], SOURCES["disabled"]):
        pool = make()
        pool.reset(seed=0)
        while not np.logical_or(*pool.step(np.zeros(GAMES, int))[2:]).any():
            pass
        pool.reset(seed=0)
        assert (clock(pool.step(np.zeros(GAMES, int)).observations)[:, 1] == 1).all()


class Spy(CountingEnv):
    """Remembers the actions it got; what it observes or pays can be spoilt."""

    def __init__(self, action_space: Any = None, observation: Any = None, reward: Any = 0.0) -> None:
        super().__init__()
        self.action_space = action_space or self.action_space
        self.spoilt, self.reward, self.actions = observation, reward, []

    def step(self, action: Any) -> Any:
        self.actions.append(action)
        return np.zeros(3, np.int32) if self.spoilt is None else self.spoilt, self.reward, False, False, {}


def spied(action_space: Any, actions: Any) -> Any:
    pool = SerialPool(lambda: Spy(action_space), 2)
    pool.reset(seed=0)
    pool.step(actions)
    return [env.actions[0] for env in pool._envs]


def test_single_games_get_an_int_for_discrete() -> None:
    first, second = spied(spaces.Discrete(4), np.array([2, 3], np.int32))
    assert type(first) is int and (first, second) == (2, 3)


def test_box_actions_are_clipped_to_the_bounds_of_each_axis() -> None:
    box = spaces.Box(np.array([-1, -2], np.float32), np.array([1, 2], np.float32))
    first, second = spied(box, np.array([[-9.0, 9.0], [0.5, -3.0]]))
    np.testing.assert_array_equal(first, [-1, 2])
    np.testing.assert_array_equal(second, [0.5, -2])
    assert first.dtype == np.float32


def test_nested_actions_are_split_per_game() -> None:
    space = spaces.Dict(keys=spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(2))), stick=spaces.Box(-1, 1, ()))
    actions = {"keys": (np.array([1, 2]), np.array([[0, 1], [1, 1]])), "stick": np.array([5.0, 0.25])}
    first, second = spied(space, actions)
    assert first["keys"][0] == 1 and second["keys"][0] == 2
    np.testing.assert_array_equal(second["keys"][1], [1, 1])
    assert first["stick"] == 1.0 and second["stick"] == 0.25


@pytest.mark.parametrize("make", [SOURCES["environments"], SOURCES["next step"]])
@pytest.mark.parametrize("actions", [np.zeros((GAMES, 1), int), np.zeros(GAMES), np.zeros(GAMES + 1, int), {"a": 1}])
def test_actions_unlike_the_space_are_refused(make: Callable[[], Pool], actions: Any) -> None:
    pool = make()
    pool.reset(seed=0)
    with pytest.raises(SpecError, match=r"actions .*int64"):
        pool.step(actions)


@pytest.mark.parametrize(
    ("observation", "got"),
    [
        (np.zeros(3, np.float64), r"float64\[3\].*int32\[3\]"),
        (np.zeros(1, np.int32), r"int32\[1\].*int32\[3\]"),  # numpy would spread it over the row
        (np.zeros((2, 3), np.int32), r"int32\[2, 3\].*int32\[3\]"),
        ({"x": 1}, r"object\[\].*int32\[3\]"),
    ],
)
def test_an_observation_unlike_its_space_is_refused(observation: Any, got: str) -> None:
    pool = SerialPool(lambda: Spy(observation=observation), 1)
    pool.reset(seed=0)
    with pytest.raises(SpecError, match=got):
        pool.step(np.zeros(1, int))


def test_a_nested_observation_that_lacks_a_key_is_refused() -> None:
    class Lacking(CountingEnv):
        def _observation(self) -> Any:
            return {"clock": np.zeros(3, np.int32)}

    with pytest.raises(SpecError, match="not built like its observation_space"):
        SerialPool(lambda: Lacking(nested=True), 1).reset(seed=0)


def test_a_vector_environment_that_breaks_its_space_is_refused() -> None:
    class Doubled(VectorObservationWrapper):
        def observations(self, observations: Any) -> Any:
            return observations.astype(np.float64)

    with pytest.raises(SpecError, match=r"float64\[5, 3\].*int32\[5, 3\]"):
        VectorPool(Doubled(counting_vector(GAMES))).reset(seed=0)


def test_an_array_as_reward_is_refused() -> None:
    pool = SerialPool(lambda: Spy(reward=np.ones(1)), 1)
    pool.reset(seed=0)
    with pytest.raises(SpecError, match=r"reward is float64\[1\]"):
        pool.step(np.zeros(1, int))


@pytest.mark.parametrize("reward", [None, "1", 1j, [1.0, 2.0], {}])
def test_a_reward_that_is_no_number_is_refused(reward: Any) -> None:
    pool = SerialPool(lambda: Spy(reward=reward), 1)
    pool.reset(seed=0)
    with pytest.raises(SpecError, match="wanted one number"):
        pool.step(np.zeros(1, int))


class Choices(gymnasium.Env[Any, Any]):
    """Shows what it is given, at its third step first."""

    action_space = spaces.Discrete(2, start=1)

    def __init__(self, space: spaces.Space[Any], shown: Any) -> None:
        self.observation_space, self.shown, self.steps = space, shown, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        shown = self.shown if self.steps == 3 else self.observation_space.sample()
        return shown, 1.0, False, False, {}


@pytest.mark.parametrize(
    ("space", "shown"),
    [
        (spaces.Discrete(4), 4), (spaces.Discrete(4, start=-9), 0), (spaces.MultiDiscrete([2, 3], start=[5, 0]), np.array([5, 3])),
        (spaces.MultiBinary(2), np.array([0, 2], np.int8)), (spaces.Dict(a=spaces.Discrete(3)), {"a": -1}),
    ],
)  # fmt: skip
def test_an_observation_outside_its_discrete_space_is_one_failed_environment(space: Any, shown: Any) -> None:
    sound, faulty = (lambda: Choices(space, space.sample())), (lambda: Choices(space, shown))
    made = iter([faulty, sound, sound])
    pool = SerialPool(lambda: next(made)(), 2, restart=True)
    pool.reset(seed=0)
    for step in range(6):
        pool.step(np.full(2, 1 + step % 2))
    assert pool.faults == 1 and "not in its space" in pool.fault


@pytest.mark.parametrize("actions", [[0, 1], [1, 3]])
def test_an_agents_action_outside_its_discrete_space_is_refused(actions: list[int]) -> None:
    pool = SerialPool(lambda: Choices(spaces.Discrete(2), 0), 2)
    pool.reset(seed=0)
    with pytest.raises(SpecError, match=r"the agent's actions holds [03], which is not in its space \(1 to 2\)"):
        pool.step(np.array(actions))


def test_one_environment_handed_out_twice_is_refused_wrapped_or_not() -> None:
    one = CountingEnv()
    for make in (lambda: one, lambda: gymnasium.wrappers.TimeLimit(one, 9)):
        with pytest.raises(ExperimentError, match="the same CountingEnv twice, wanted a new environment"):
            SerialPool(make, 2)


@pytest.mark.parametrize("name", ["observation_space", "action_space"])
def test_environments_of_one_pool_have_one_space(name: str) -> None:
    counts = iter([2, 3])

    def make() -> Any:
        env = Choices(spaces.Discrete(2), 0)
        setattr(env, name, spaces.Discrete(next(counts)))
        return env

    with pytest.raises(SpecError, match=rf"the {name} Discrete\(3\), the one before had Discrete\(2\)"):
        SerialPool(make, 2)


def test_an_error_inside_the_environment_comes_out_untouched() -> None:
    class Broken(CountingEnv):
        def step(self, action: Any) -> Any:
            raise KeyError("mine")

    pool = SerialPool(Broken, 1)
    pool.reset(seed=0)
    with pytest.raises(KeyError, match="mine"):
        pool.step(np.zeros(1, int))


def test_observation_and_info_are_told_from_a_tuple_observation() -> None:
    class Pair(gymnasium.Env):
        observation_space = spaces.Tuple((spaces.Box(0, 1, (2,)), spaces.Dict(a=spaces.Discrete(3))))
        action_space = spaces.Discrete(2)

        def __init__(self, modern: bool) -> None:
            self.modern = modern

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            observation = (np.ones(2, np.float32), {"a": 2})
            return (observation, {"a": 1}) if self.modern else observation

    for modern in (True, False):
        box, inside = SerialPool(lambda modern=modern: Pair(modern), 1).reset(seed=0)
        np.testing.assert_array_equal(box, [[1, 1]])
        np.testing.assert_array_equal(inside["a"], [2])


def test_same_step_is_refused_with_the_line_that_changes_it() -> None:
    with pytest.raises(ExperimentError, match=r"autoreset_mode=gymnasium\.vector\.AutoresetMode\.NEXT_STEP") as error:
        VectorPool(counting_vector(2, AutoresetMode.SAME_STEP))
    assert "\n" not in str(error.value)


def test_a_vector_environment_that_declares_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(VectorEnv):
        num_envs = 2

    class Declared(Silent):
        metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}

    monkeypatch.setitem(VectorEnv.metadata, "autoreset_mode", AutoresetMode.NEXT_STEP)  # as ale-py leaves it behind
    with pytest.raises(ExperimentError, match="Silent does not say how it resets"):
        VectorPool(Silent())
    with pytest.raises(ExperimentError, match="Declared resets in the step"):
        VectorPool(Declared())


def test_pool_of_wraps_whatever_can_be_stepped() -> None:
    made: list[CountingEnv] = []

    def make() -> CountingEnv:
        made.append(CountingEnv())
        return made[-1]

    pool = pool_of(make, 3, realtime=True)
    assert isinstance(pool, SerialPool) and pool.realtime and len(made) == 3 == len(set(map(id, pool._envs)))
    assert isinstance(pool_of(counting_vector(2), 2), VectorPool)
    assert isinstance(pool_of(lambda: counting_vector(2), 2), VectorPool)
    assert pool_of(pool, 3) is pool and pool_of(lambda: pool, 3) is pool
    assert pool_of(counting_vector(2), 2, realtime=True).realtime and not pool_of(counting_vector(2), 2).realtime


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (CountingEnv(), "got a CountingEnv, wanted a function"),
        (3, "got an int, wanted a function"),
        (lambda: None, "make_env gave None, wanted a gymnasium.Env"),
        (lambda: counting_vector(3), "got 3 environments, wanted 2: .*num_envs=2"),
    ],
)
def test_pool_of_says_what_it_got_and_what_it_wants(thing: Any, words: str) -> None:
    with pytest.raises(ExperimentError, match=words):
        pool_of(thing, 2)
    with pytest.raises(ExperimentError, match="got 0 environments"):
        pool_of(CountingEnv, 0)


def test_spaces_that_hold_no_arrays_are_refused() -> None:
    class Talking(CountingEnv):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Dict(said=spaces.Text(10))

    with pytest.raises(ExperimentError, match=r"Text.*holds no arrays"):
        SerialPool(Talking, 1)


def test_an_integer_of_any_width_is_a_discrete_observation() -> None:
    env = Spy(observation=np.int32(7))
    env.observation_space = spaces.Discrete(9)
    env._observation = lambda: 3  # type: ignore[method-assign]
    pool = SerialPool(lambda: env, 1)
    assert pool.reset(seed=0).tolist() == [3]
    assert pool.step(np.zeros(1, int)).observations.tolist() == [7]


class Unclosable(CountingEnv):
    def close(self) -> None:
        raise RuntimeError("the window is gone")


@pytest.mark.parametrize("make", [Unclosable, lambda: SimpleNamespace(**vars_of(CountingEnv()))])
def test_what_cannot_be_closed_loses_nothing(make: Callable[[], Any], caplog: Any) -> None:
    pool = SerialPool(make, 2)
    pool.reset(seed=0)
    pool.close()
    assert ("could not be closed: RuntimeError: the window is gone" in caplog.text) == (make is Unclosable)


def vars_of(env: Any) -> dict[str, Any]:
    """All that an environment needs, without close()."""
    return {name: getattr(env, name) for name in ("reset", "step", "observation_space", "action_space")}


@pytest.mark.parametrize(
    ("space", "shown", "fits"),
    [
        (spaces.Discrete(4, dtype=np.uint8), 3, True), (spaces.MultiDiscrete([3, 4], dtype=np.uint8), np.array([2, 3]), True),
        (spaces.MultiBinary(2), np.array([0, 256]), False), (spaces.Discrete(4, dtype=np.uint8), -1, False),
    ],
)  # fmt: skip
def test_integers_of_another_width_fit_if_their_values_do(space: Any, shown: Any, fits: bool) -> None:
    pool = SerialPool(lambda: Choices(space, shown), 1)
    pool.reset(seed=0)
    pool.step(np.ones(1, np.uint8))
    pool.step(np.ones(1, int))
    if fits:
        assert (pool.step(np.ones(1, int)).observations == shown).all()
        return
    with pytest.raises(SpecError, match="cannot hold|not in its space"):
        pool.step(np.ones(1, int))
