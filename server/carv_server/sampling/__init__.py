"""The sampling core: pure functions over arrays, no I/O and no hidden state.

``schedule`` and ``prediction`` describe the teacher, ``objective`` the estimand, ``timesteps``
and ``proposals`` where draws fall, ``noise`` what eps is, ``plan`` puts a request's draws
together, ``reduce`` turns evaluated draws into an estimate with its variance.
"""
