"""Django's settings, made from the typed environment (cloud/environment.py). No logic beyond that."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cloud import environment

BASE_DIR: Path = environment.BASE_DIR
VISIONA: dict[str, Any] = environment.load()
PRODUCTION = VISIONA["ENV"] == "production"

DEBUG = False  # errors are envelopes in development too; a page with settings and locals helps no front end
SECRET_KEY, *SECRET_KEY_FALLBACKS = VISIONA["SECRET_KEY"]
_hosts = VISIONA["ALLOWED_HOSTS"] or ((urlsplit(VISIONA["PUBLIC_URL"]).hostname or "",) if PRODUCTION else ("*",))
ALLOWED_HOSTS = [*_hosts, "127.0.0.1", "localhost"] if PRODUCTION else list(_hosts)

INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "corsheaders",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "procrastinate.contrib.django",
    "pgtrigger",
    "apps.common",
    "apps.audit",
    "apps.accounts",
    "apps.tunnels",
    "apps.pairing",
    "apps.devices",
    "apps.proxy",
    "apps.system",
    "apps.console",
]

MIDDLEWARE = [
    "apps.common.middleware.RequestContextMiddleware",  # outermost: every answer has its id and its log line
    "apps.common.middleware.SecurityHeadersMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "corsheaders.middleware.CorsMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "apps.common.middleware.TrailingSlashMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "cloud.urls"
WSGI_APPLICATION = "cloud.wsgi.application"
APPEND_SLASH = False

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": VISIONA["DB_HOST"],
        "PORT": VISIONA["DB_PORT"],
        "USER": VISIONA["DB_USER"],
        "PASSWORD": VISIONA["DB_PASSWORD"],
        "NAME": VISIONA["DB_NAME"],
        "OPTIONS": {"sslmode": VISIONA["DB_SSLMODE"]},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_USER_MODEL = "accounts.User"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 8}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True

STATIC_URL = "/static/"
WHITENOISE_USE_FINDERS = True  # straight from the packages: nothing to collect, nothing to forget
# The e-mail is unique by lower(email), which is stronger than the plain uniqueness that the check looks for.
SILENCED_SYSTEM_CHECKS = ["auth.E003"]

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["apps.accounts.api.authentication.LoginTokenAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_PARSER_CLASSES": ["apps.common.parsers.StrictJsonParser"],
    "DEFAULT_RENDERER_CLASSES": ["apps.common.parsers.EnvelopeRenderer"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "apps.common.parsers.JsonOnly",
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "apps.common.api.exception_handler",
    "URL_FORMAT_OVERRIDE": None,
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
}

CORS_ALLOWED_ORIGINS = list(VISIONA["CORS_ALLOWED_ORIGINS"])
CORS_URLS_REGEX = r"^/(api|storage|d|ws)(/|$)"
CORS_ALLOW_METHODS = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"]
CORS_ALLOW_HEADERS = [
    "accept",
    "accept-language",
    "authorization",
    "cache-control",
    "content-range",
    "content-type",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "last-event-id",
    "range",
    "traceparent",
    "x-device-id",
    "x-request-id",
    "x-requested-with",
]
CORS_EXPOSE_HEADERS = [
    "X-Request-ID",
    "Retry-After",
    "RateLimit-Limit",
    "RateLimit-Remaining",
    "RateLimit-Reset",
    "ETag",
    "Content-Range",
    "Accept-Ranges",
]
