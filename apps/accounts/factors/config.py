"""Names the site for Django; `settings.INSTALLED_APPS` holds it in the place of `django.contrib.admin`."""

from django.contrib.admin.apps import AdminConfig


class StaffAdminConfig(AdminConfig):
    default_site = "apps.accounts.factors.site.StaffSite"
