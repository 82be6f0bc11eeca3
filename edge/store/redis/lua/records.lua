-- What edges know by heart, all of one moment. Replies echo, the data's version, that of the revoked tokens, signing
-- keys, everyone's revocation, maintenance; then keys, revoked principals and limits of callers as (field, value)s, revoked tokens as (jti, end)s,
-- ids of revoked invites.

local meta = redis.call('HMGET', META, 'version', 'tokens-version', 'signing_keys', 'everyone', 'maintenance')
return {
  ECHO, meta[1] or '', meta[2] or '', meta[3] or '', meta[4] or '0', meta[5] or '',
  redis.call('HGETALL', key('keys')),
  redis.call('HGETALL', key('revoked-principals')),
  redis.call('HGETALL', key('limits')),
  revoked_tokens(),
  redis.call('SMEMBERS', key('revoked-invites')),
}
