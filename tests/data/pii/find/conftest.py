import pytest

from tuneline.config.data import RAMPART
from tuneline.data.pii.find.detector import Detector
from tuneline.data.pii.find.entities import Settings, scrubbed_entities
from tuneline.data.pii.find.models import fetch_entity_model


@pytest.fixture(scope="session")
def usual_model():
    """The directory of the model that finds personal data."""
    return fetch_entity_model(RAMPART)[0]


@pytest.fixture(scope="session")
def detectors(usual_model):
    """Detectors by profile, with the usual model."""
    return {
        profile: Detector(
            Settings(
                entities=scrubbed_entities([profile]),
                models=(usual_model,),
                allow=frozenset({"acme support"}),
            )
        )
        for profile in ("gdpr", "hipaa", "pci")
    }
