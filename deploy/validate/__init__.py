"""Checks of everything under deploy/ and of docker-compose.yml, offline: ``python -m
deploy.validate``, part of ``make lint``. Each check takes what it looks at as an argument and gives
back what is wrong as lines of text; tests/deploy feeds each of them what it must refuse."""
