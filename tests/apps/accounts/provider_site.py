"""A real OpenID provider as a process of its own: django-oauth-toolkit on a database file (docs/decisions/0005).

    python provider_site.py FOLDER PORT REDIRECT_URI…

FOLDER holds its database, `keys/*.pem` (the last by name signs, the others are still published) and `users.json`
(`[{"email", "password", "name", "verified"}]`). The client is `visiona`, its secret CLIENT_SECRET. It shares no line
with what it tests: its tokens are made by oauthlib and jwcrypto.
"""

import importlib
import sys
from pathlib import Path

import django
from django.conf import settings

CLIENT_ID = "visiona"
CLIENT_SECRET = "a secret with : and / in it"

LOGIN_PAGE = """<form method="post">{% csrf_token %}{{ form }}<input type="hidden" name="next" value="{{ next }}">
<button>Log in</button></form>"""


def configure(folder: Path, port: int) -> None:
    keys = [path.read_text() for path in sorted((folder / "keys").glob("*.pem"))]
    settings.configure(
        SECRET_KEY="a test's",
        ALLOWED_HOSTS=["127.0.0.1"],
        ROOT_URLCONF="provider_parts",
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "oauth2_provider",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {
                    "loaders": [("django.template.loaders.locmem.Loader", {"registration/login.html": LOGIN_PAGE})],
                    "context_processors": ["django.template.context_processors.request"],
                },
            }
        ],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(folder / "provider.sqlite3"),
                "OPTIONS": {"init_command": "PRAGMA synchronous=OFF", "timeout": 20},
            }
        },
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        LOGIN_URL="/accounts/login/",
        SESSION_COOKIE_NAME="provider_session",
        MIGRATION_MODULES=dict.fromkeys(("auth", "contenttypes", "sessions", "oauth2_provider")),  # tables at once
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
        OAUTH2_PROVIDER={
            "OIDC_ENABLED": True,
            "OIDC_ISS_ENDPOINT": f"http://127.0.0.1:{port}/o",
            "OIDC_RSA_PRIVATE_KEY": keys[-1],
            "OIDC_RSA_PRIVATE_KEYS_INACTIVE": keys[:-1],
            "OAUTH2_VALIDATOR_CLASS": "provider_parts.Validator",
            "SCOPES": {"openid": "who", "email": "e-mail", "profile": "name"},
            "PKCE_REQUIRED": True,
            "COMPLIANT_BCP_RFC9700_PKCE_METHOD": True,
            "COMPLIANT_BCP_RFC9700_AUTHZ_RESPONSE_ISS": True,
        },
    )
    django.setup()


def main(folder: Path, port: int, redirect_uris: list[str]) -> None:
    configure(folder, port)
    parts = importlib.import_module("provider_parts")  # models, so not before the settings
    parts.fill(folder, redirect_uris, CLIENT_ID, CLIENT_SECRET)
    parts.serve(port)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
