"""The owner's profile: nothing differs from the image's."""
