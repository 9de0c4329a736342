"""Third parties behind verbs: the only room that names a vendor."""
