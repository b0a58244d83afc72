"""The second factor of a login: a code of an authenticator (TOTP, RFC 6238), a passkey, or one of ten recovery codes.

totp      the arithmetic of codes           recovery   the codes for when the others are lost
webauthn  what passkeys sign, and whether   passkeys   registering and removing them
checking  what a login is asked for         owner      switching on and off, renewing, removing
site      the admin's site (named by `config`): no page of it without the second step
steps     where a login to the admin stands, in its session
pages     that step, and one's own factor, as pages of the admin (`admin`: everybody's, for operators)
"""
