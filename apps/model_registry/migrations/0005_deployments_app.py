from django.db import migrations


class Migration(migrations.Migration):
    """Deployments are another app's from here on (`deployments.0001`). Their table stays as it is."""

    dependencies = [
        ("model_registry", "0004_finalization_attempts"),
    ]

    operations = [
        migrations.SeparateDatabaseAndState(state_operations=[migrations.DeleteModel(name="Deployment")]),
    ]
