-- Lets a guest in. ARGV[3]: address, ARGV[4]: tries a minute that may fail, ARGV[5]: the invite's id, '' for no invite,
-- ARGV[6]: digest of its secret, ARGV[7]: the guest's principal id.
-- Replies echo, 'ok', 'no' or 'tries', microseconds to wait, plan, end of the invite in seconds.

local tries, limit, id, digest, guest = key('tries', ARGV[3]), tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7]
local tried = ahead(tries)
local wait = wait_of(tried, limit)
if wait > 0 then
  return {ECHO, 'tries', wait}
end

local function no()
  take(tries, tried, limit)
  return {ECHO, 'no', 0}
end

local row = redis.call('HGET', key('invites'), id)
local invite = row and cjson.decode(row) or {digest = ''}
-- Hashed with what nobody can choose, so that how long it takes to compare says nothing of the digest that is kept.
local same = redis.sha1hex(invite.digest .. ECHO .. now) == redis.sha1hex(digest .. ECHO .. now)
if not (same and row) or redis.call('SISMEMBER', key('revoked-invites'), id) == 1
    or now >= (invite.expires_at - 1) * 1000000 or redis.call('HEXISTS', key('revoked-principals'), guest) == 1 then
  return no()
end
local guests = key('guests', id)
if redis.call('SISMEMBER', guests, guest) == 0 then
  if count(key('invites-used'), id) >= invite.uses then
    return no()
  end
  redis.call('SADD', guests, guest)
  redis.call('PEXPIRE', guests, math.ceil(invite.expires_at * 1000 - now / 1000))
  redis.call('HINCRBY', key('invites-used'), id, 1)
end
return {ECHO, 'ok', 0, invite.plan, invite.expires_at}
