"""tzrec_core: the slim core of tzrec, a recommender framework whose models are pip packages."""

__version__ = "0.1.0"
