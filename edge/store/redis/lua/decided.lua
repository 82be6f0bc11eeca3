-- Replies echo, then signing keys, maintenance; keys, revoked principals and limits of callers, invites and how often
-- they were used, all as (field, value)s.

local meta = redis.call('HMGET', META, 'signing_keys', 'maintenance')
return {
  ECHO, meta[1], meta[2] or '', redis.call('HGETALL', key('keys')), redis.call('HGETALL', key('revoked-principals')),
  redis.call('HGETALL', key('limits')), redis.call('HGETALL', key('invites')),
  redis.call('HGETALL', key('invites-used')),
}
