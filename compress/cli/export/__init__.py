"""``compress export``: the only room that knows the packages ``export`` and ``bench`` beside this one."""
