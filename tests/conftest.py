"""What every test starts from: no network but loopback, no chatter of the model libraries, nobody in a hurry."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import torch
import transformers
from hypothesis import HealthCheck, settings

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
torch.set_num_threads(1)  # the checkpoints are tiny: more threads would only wait for each other
