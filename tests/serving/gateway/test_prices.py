import pytest
from pydantic import ValidationError

from tuneline.serving.gateway.upstream_config import PriceConfig


def test_listed_prices_are_per_thousand_tokens():
    rates = PriceConfig(per_1k_prompt=0.5, per_1k_completion=1.5).rates()
    assert rates.cost(2000, 1000) == pytest.approx(2.5)


def test_a_machines_hour_is_shared_among_its_tokens():
    # 3.60 an hour is 0.001 a second; at 100 tokens a second 1,000 tokens take 10 s.
    rates = PriceConfig(hourly_cost=3.6, completion_tokens_per_second=100).rates()
    assert rates.cost(5000, 1000) == pytest.approx(0.01)
    both = PriceConfig(
        hourly_cost=3.6, completion_tokens_per_second=100, prompt_tokens_per_second=1000
    ).rates()
    assert both.cost(1000, 1000) == pytest.approx(0.011)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"per_1k_prompt": 1},
        {"hourly_cost": 1},
        {"per_1k_prompt": 1, "per_1k_completion": 1, "hourly_cost": 1},
        {"per_1k_prompt": 1, "per_1k_completion": 1, "prompt_tokens_per_second": 1},
    ],
)
def test_half_a_price_is_refused(fields):
    with pytest.raises(ValidationError, match="give either"):
        PriceConfig(**fields)
