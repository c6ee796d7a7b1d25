"""The command ``python -m judge PART``, configured by the environment."""

import argparse
import logging
import sys

from judge import settings as configuration


def main() -> int:
    """Run one part of the judge. Exit codes: 0, 1 something is missing, 2 wrong usage, 4 it cannot run here."""
    parser = argparse.ArgumentParser(prog="judge", description="A small judge service.")
    parser.add_argument("part", choices=["serve", "worker", "web", "verify-setup", "fail-stale", "clean-old"])
    part = parser.parse_args().part
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        return _run(part, configuration.from_environment())
    except configuration.UnusableError as error:
        print(f"judge {part}: {error}", file=sys.stderr)
        return 4


def _run(part: str, settings: configuration.Settings) -> int:
    if part == "worker":
        from judge.worker import Worker

        Worker(settings).run()
        return 0
    if part in ("serve", "web"):
        import uvicorn

        if part == "serve":
            from judge.api import create_app

            app, port = create_app(settings), settings.port
        else:
            from judge.web import create_app as create_web

            app, port = create_web(settings), settings.web_port
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=3, ws="none")
        return 0
    from judge import operations

    return {
        "verify-setup": operations.verify_setup,
        "fail-stale": operations.fail_stale,
        "clean-old": operations.clean_old,
    }[part](settings)


if __name__ == "__main__":
    sys.exit(main())
