"""The building of the pack: the tiny detector, matcher and vision-language model are trained here."""
