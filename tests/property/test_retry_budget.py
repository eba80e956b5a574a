"""The retry budget against a list of everything that ever happened, under any order of requests, retries and pauses."""

from hypothesis import event, target
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from orchestra.policies import RetryPolicy
from orchestra.resilience.retry import BudgetStatus, RetryBudget

LENGTHS = st.sampled_from([2.5, 10.0, 40.0])  # whose tenths, like all times here, floats add up exactly


class AnyHistory(RuleBasedStateMachine):
    """Keeps all requests and retries by their bucket, and reads the window off that list each time."""

    @initialize(
        length=LENGTHS,
        least=st.integers(0, 4),
        ratio=st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]),
        start=st.integers(0, 400),
    )
    def begin(self, length: float, least: int, ratio: float, start: int) -> None:
        self.policy = RetryPolicy(budget_seconds=length, budget_min=least, budget_ratio=ratio)
        self.now = start / 4
        self.requests: list[float] = []
        self.retries: list[float] = []
        self.budget = RetryBudget(self.policy, lambda: self.now)

    def recent(self, times: list[float]) -> int:
        tenth = self.policy.budget_seconds / 10
        return sum(at // tenth > self.now // tenth - 10 for at in times)

    def allowed(self) -> float:
        return max(self.policy.budget_min, self.policy.budget_ratio * self.recent(self.requests))

    @rule(count=st.integers(1, 30))
    def requested(self, count: int) -> None:
        for _ in range(count):
            self.budget.deposit()
            self.requests.append(self.now)

    @rule(count=st.integers(1, 5))
    def failed(self, count: int) -> None:
        for _ in range(count):
            granted = self.budget.withdraw()
            assert granted == (self.recent(self.retries) + 1 <= self.allowed())
            if granted:
                self.retries.append(self.now)
            event("granted" if granted else "refused")

    @rule(quarters=st.one_of(st.integers(1, 8), st.integers(1, 400)))
    def pause(self, quarters: int) -> None:
        self.now += quarters / 4

    @rule()
    def look(self) -> None:  # no invariant: looking moves time on, which each of the others must do by itself
        requests, retries = self.recent(self.requests), self.recent(self.retries)
        status = self.budget.describe()
        assert status == BudgetStatus(requests, retries, max(0, int(self.allowed()) - retries))

    def teardown(self) -> None:
        if hasattr(self, "budget"):
            self.look()
            target(float(len(self.retries)), label="retries granted")
            target(float(len(self.requests) - self.recent(self.requests)), label="requests forgotten")


TestAnyHistory = AnyHistory.TestCase
