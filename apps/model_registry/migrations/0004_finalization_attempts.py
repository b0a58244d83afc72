from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("model_registry", "0003_finalizations"),
    ]

    operations = [
        migrations.AddField(
            model_name="finalization",
            name="attempts",
            field=models.PositiveSmallIntegerField(db_default=0, default=0),
        ),
    ]
