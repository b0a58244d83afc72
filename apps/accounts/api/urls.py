"""The routes of accounts, below the root."""

from django.urls import path

from apps.accounts.api import credential_views, factor_views, identity_views, oidc_views, views

urlpatterns = [
    path("api/auth/register", views.RegisterView.as_view()),
    path("api/auth/login", views.LoginView.as_view()),
    path("api/auth/login/passkey", views.LoginPasskeyView.as_view()),
    path("api/auth/logout", views.LogoutView.as_view()),
    path("api/auth/logout-all", views.LogoutAllView.as_view()),
    path("api/auth/me", views.MeView.as_view()),
    path("api/auth/sessions", views.SessionListView.as_view()),
    path("api/auth/sessions/<str:id>", views.SessionView.as_view()),
    path("api/auth/identities", identity_views.IdentityListView.as_view()),
    path("api/auth/identities/link", identity_views.IdentityLinkView.as_view()),
    path("api/auth/identities/<str:id>", identity_views.IdentityView.as_view()),
    path("api/auth/second-factor", factor_views.FactorView.as_view()),
    path("api/auth/second-factor/confirm", factor_views.ConfirmView.as_view()),
    path("api/auth/second-factor/recovery-codes", factor_views.RecoveryCodesView.as_view()),
    path("api/auth/second-factor/authenticator", factor_views.AuthenticatorView.as_view()),
    path("api/auth/second-factor/passkey", factor_views.ProvePasskeyView.as_view()),
    path("api/auth/passkeys", factor_views.PasskeyListView.as_view()),
    path("api/auth/passkeys/options", factor_views.PasskeyOptionsView.as_view()),
    path("api/auth/passkeys/<str:id>", factor_views.PasskeyView.as_view()),
    path("api/auth/email/verify", credential_views.VerifyEmailView.as_view()),
    path("api/auth/email/verify/resend", credential_views.ResendView.as_view()),
    path("api/auth/password", credential_views.PasswordView.as_view()),
    path("api/auth/password/reset", credential_views.ResetView.as_view()),
    path("api/auth/password/reset/confirm", credential_views.ConfirmResetView.as_view()),
    path("api/auth/oidc/login", oidc_views.OidcLoginView.as_view()),
    path("api/auth/oidc/callback", oidc_views.OidcCallbackView.as_view()),
    path("api/auth/oidc/token", oidc_views.OidcTokenView.as_view()),
]
