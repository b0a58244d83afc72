"""Django's settings, made from the typed environment (cloud/environment.py). No logic beyond that."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.templatetags.static import static
from django.urls import reverse_lazy
from django.utils.translation import gettext_lazy as _

from apps.common.redis import cache_settings
from cloud import environment, navigation, postgres_wheel
from cloud.jobs import JOBS_AT_ONCE, counted, own_threads
from cloud.mail import mail_settings
from cloud.version import BUILT_AT, COMMIT, VERSION

BASE_DIR: Path = environment.BASE_DIR
VISIONA: dict[str, Any] = environment.load()
PRODUCTION = VISIONA["ENV"] == "production"

__all__ = ["BUILT_AT", "COMMIT", "VERSION"]  # read by /api/system/info

DEBUG = False  # errors are envelopes in development too; a page with settings and locals helps no front end
SECRET_KEY, *SECRET_KEY_FALLBACKS = VISIONA["SECRET_KEY"]
_caller = environment.host_of(VISIONA["API_INTERNAL_URL"]) or "localhost"  # the name by which the daemons call
_hosts = VISIONA["ALLOWED_HOSTS"] or (environment.host_of(VISIONA["PUBLIC_URL"]),)
ALLOWED_HOSTS = (
    [*_hosts, _caller, "127.0.0.1", "[::1]", "localhost"]
    if PRODUCTION
    else [*VISIONA["ALLOWED_HOSTS"], *environment.local_hosts(VISIONA)]
)

INSTALLED_APPS = [
    "unfold.apps.BasicAppConfig",  # with a site of our own:
    "unfold.contrib.filters",
    "apps.accounts.factors.config.StaffAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "procrastinate.contrib.django",
    "pgtrigger",
    "apps.common",
    "apps.audit",
    "apps.accounts",
    "apps.storage",
    "apps.tunnels",
    "apps.webhooks",
    "apps.pairing",
    "apps.devices",
    "apps.model_registry",
    "apps.deployments",
    "apps.clusters",
    "apps.converter",
    "apps.proxy",
    "apps.system",
    "apps.console",
]

MIDDLEWARE = [
    "apps.proxy.middleware.CarriedMiddleware",  # outermost: sees what the server gets
    "apps.common.http.middleware.RequestContextMiddleware",  # every answer has its id and its log line
    "apps.common.http.language.LanguageMiddleware",
    "apps.common.http.middleware.SecurityHeadersMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "apps.proxy.cors.CorsMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "apps.common.http.middleware.TrailingSlashMiddleware",
    "apps.common.http.middleware.PlainRefusalMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "apps.proxy.middleware.HostMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
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
        "ENGINE": "cloud.db",
        "HOST": VISIONA["DB_HOST"],
        "PORT": VISIONA["DB_PORT"],
        "USER": VISIONA["DB_USER"],
        "PASSWORD": VISIONA["DB_PASSWORD"],
        "NAME": VISIONA["DB_NAME"],
        "CONN_MAX_AGE": 0,  # the pool keeps connections, not the threads
        "OPTIONS": {
            "sslmode": VISIONA["DB_SSLMODE"],
            "application_name": "visiona",
            "deadline": VISIONA["DB_DEADLINE_SECONDS"],
            "statement_timeout_ms": VISIONA["DB_STATEMENT_TIMEOUT_MS"],
            "lock_timeout_ms": VISIONA["DB_LOCK_TIMEOUT_MS"],
            "pool_min": VISIONA["DB_POOL_MIN"],
            "pool_max": VISIONA["DB_POOL_MAX"],
        },
    }
}
POSTGRES_PROGRAMS = postgres_wheel.programs()  # for backups, where the machine has none of its own
CACHES = cache_settings(VISIONA["REDIS_URL"], VISIONA["API_THREADS"], timeout=VISIONA["REDIS_TIMEOUT_SECONDS"])
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = ["apps.accounts.backends.AuditedBackend"]
PASSWORD_HASHERS = ["apps.accounts.hashers.Argon2Hasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 8}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

MAIL_FOLDER = str(BASE_DIR / VISIONA["EMAIL_DIR"])
globals().update(mail_settings(VISIONA, MAIL_FOLDER))
DEFAULT_FROM_EMAIL = SERVER_EMAIL = VISIONA["EMAIL_FROM"]

# The jobs that delete what apps hold of a user who leaves, in order; each takes `user_id` and may run twice.
ACCOUNT_SHED_TASKS = ("pairing.revoke_all", "devices.unpair_all", "webhooks.delete_all")
"""Those that rid an account of what was prepared in it; each takes `before` too, an ISO 8601 moment."""
ACCOUNT_END_TASKS = ("devices.unpair_all", "webhooks.delete_all", "models.purge_owner")

# Jobs are short; SIGTERM waits this long for those that run, and whatever is left is done by the next worker.
PROCRASTINATE_WORKER_DEFAULTS = {
    "concurrency": JOBS_AT_ONCE,
    "shutdown_graceful_timeout": 3.0,
    "worker_middleware": [own_threads, counted],
}
PROCRASTINATE_ON_APP_READY = "cloud.db.queue.use"

LOGGING_CONFIG = "cloud.logs.configure"
LOGGING = {"level": VISIONA["LOG_LEVEL"]}

LANGUAGE_CODE = VISIONA["LANGUAGE"]
LANGUAGES = [("en", "English"), ("zh-hant", "繁體中文")]
LOCALE_PATHS = [BASE_DIR / "cloud" / "locale"]
TIME_ZONE = "UTC"
USE_TZ = True
FORMAT_MODULE_PATH = ["cloud.formats"]

STATIC_URL = "/static/"
WHITENOISE_USE_FINDERS = True  # straight from the packages: nothing to collect, nothing to forget
WHITENOISE_ALLOW_ALL_ORIGINS = False  # pages of other origins have the allow-list, on the API alone

_PUBLIC = urlsplit(VISIONA["PUBLIC_URL"])
SECURE_REFERRER_POLICY = "same-origin"
SECURE_HSTS_SECONDS = 31_536_000 if _PUBLIC.scheme == "https" else 0
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _PUBLIC.scheme == "https"
SESSION_COOKIE_AGE = 1800 if PRODUCTION else 1_209_600
SESSION_SAVE_EVERY_REQUEST = PRODUCTION  # the age counts from the last use: half an hour of idleness ends an admin's
SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = "visiona_admin", "visiona_csrf"
CSRF_FAILURE_VIEW = "apps.common.http.error_handlers.csrf_failure"
CSRF_TRUSTED_ORIGINS = [f"{_PUBLIC.scheme}://{_PUBLIC.netloc}"]
DATA_UPLOAD_MAX_NUMBER_FIELDS = 10_000  # an admin action on a long list
SILENCED_SYSTEM_CHECKS = [
    "auth.E003",  # unique by email_key, which is stronger than the plain uniqueness that the checks look for
    "auth.W004",  # the same, with a backend of our own
    "security.W005",  # HSTS for subdomains: they are the operator's
    "security.W008",  # no redirect to TLS: the daemon speaks plain HTTP to this port; the load balancer redirects
    "security.W021",  # HSTS preload: the operator's to ask for
]

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["apps.accounts.api.authentication.LoginTokenAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_PARSER_CLASSES": ["apps.common.api.parsers.StrictJsonParser"],
    "DEFAULT_RENDERER_CLASSES": ["apps.common.api.parsers.EnvelopeRenderer"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "apps.common.api.parsers.JsonOnly",
    "DEFAULT_SCHEMA_CLASS": "apps.common.api.schema.ApiSchema",
    "EXCEPTION_HANDLER": "apps.common.api.views.exception_handler",
    "URL_FORMAT_OVERRIDE": None,
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
}

SPECTACULAR_SETTINGS = {
    "TITLE": "VisionA Cloud",
    "DESCRIPTION": "Reach edge-AI boxes behind NAT: accounts, pairing, devices, clusters, calls through their tunnels, "
    "models and their deployment, webhooks.",
    "VERSION": VERSION,
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "ENUM_NAME_OVERRIDES": {"ConversionStatusEnum": "apps.converter.models.ConversionStatus"},
    "SORT_OPERATIONS": True,
    "SERVERS": [{"url": "/"}],
    "APPEND_COMPONENTS": {"securitySchemes": {"login": {"type": "http", "scheme": "bearer"}}},
}

UNFOLD = {
    "SITE_TITLE": "VisionA Cloud",
    "SITE_HEADER": "VisionA Cloud",
    "SITE_SYMBOL": "hub",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": lambda _request: static("console/icon.svg")}],
    "COLORS": {"primary": navigation.TEAL},
    "SHOW_HISTORY": False,
    "SHOW_VIEW_ON_SITE": True,
    "SITE_URL": "/",
    "ACCOUNT": {"navigation": [{"title": _("Second factor"), "link": reverse_lazy("admin:second_factor")}]},
    "SIDEBAR": {"show_search": True, "show_all_applications": False, "navigation": navigation.SECTIONS},
}
