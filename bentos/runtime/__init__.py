"""What turns rows into a version's predictions, alike in the gateway and in a Bento that serves alone.

Packaging copies the whole of it, so it imports nothing but itself, ``airlock.core`` and the pinned requirements of
``bentos/version``.
"""
