"""Laws that a `Base`, a `Pair` and a `ProxyTuner` keep, as checks to import: for parts of your own, and for ours.

    from blackbox_proxy.testing import check_base, check_pair

    def test_my_base():
        check_base(lambda: MyBase("big"), ["Once upon a time, there was", "The sum of 2 and 2 is"])

bases, pairs, tuners    the laws of each, one function a law: its docstring is the law
laws                    how they are put, and how a broken one says what was expected and what came

Not every law can be put to every part (a base that scores no given text is not asked to), so each check returns the
names of those that were. Needs no test runner. `make_base` makes a fresh base each time, with a fresh cache if any.
"""

from blackbox_proxy.testing.bases import BASE_LAWS, acheck_base, check_base
from blackbox_proxy.testing.laws import How
from blackbox_proxy.testing.pairs import EQUAL_LAWS, PAIR_LAWS, check_equal_models, check_pair
from blackbox_proxy.testing.tuners import TUNER_LAWS, check_tuner

__all__ = [
    "BASE_LAWS",
    "EQUAL_LAWS",
    "PAIR_LAWS",
    "TUNER_LAWS",
    "How",
    "acheck_base",
    "check_base",
    "check_equal_models",
    "check_pair",
    "check_tuner",
]
