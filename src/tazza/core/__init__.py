"""The user's objects, in one linear order; each file imports only what stands to its left.

registry · device · dtypes · completion · event · failures · submission · runtime · runner · native · stream · pool ·
generator · arraylib · task · kernel · arguments · transfer · placer · statefile · states · progress · health ·
scope · spec · context · opening · current · shutdown
"""
