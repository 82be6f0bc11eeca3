-- Begins every script. Its names are the only ones that scripts share.
--
-- KEYS[1]  the tag that begins every key: its braces put all of them into one slot of a cluster, where a script may
--          use keys that it was not given
-- ARGV[1]  comes back as the first of the reply, so that a reply can be told from another's
-- ARGV[2]  microseconds since 1970; 0 is this server's clock, which all edges share

local TAG = KEYS[1]
local ECHO = ARGV[1]
local now = tonumber(ARGV[2])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

local DAY = 86400000000
local KEEP_SECONDS = 36 * 86400 -- of a past day's counts: the owner may look at five weeks
local today = string.format('%d', math.floor(now / DAY))

local function key(...)
  return table.concat({TAG, ...}, ':')
end

local META, CHATS, RUNNING, EDGES = key('meta'), key('chats'), key('running'), key('edges')

local function count(hash, field)
  return tonumber(redis.call('HGET', hash, field) or 0)
end

-- Never below zero, and what is zero costs no memory. (`-by` of 0 is "-0", which the server takes for no number.)
local function give_back(hash, field, by)
  if redis.call('HINCRBY', hash, field, 0 - by) <= 0 then
    redis.call('HDEL', hash, field)
  end
end

-- The data's id; '' when the data, or today's counts, are gone. Going on would give everybody a whole quota again.
local function whole()
  local meta = redis.call('HMGET', META, 'id', 'day')
  if not meta[1] or (meta[2] == today and redis.call('HEXISTS', key('used', today), '') == 0) then
    return ''
  end
  return meta[1]
end

local LONGEST_TOKEN = 366 * 86400 -- seconds, as in shared/signing_keys.py

-- Invites that ended long ago, and revocations of callers whose tokens of then have all ended.
local function forget()
  local principals = redis.call('HGETALL', key('revoked-principals'))
  for index = 1, #principals, 2 do
    if tonumber(principals[index + 1]) <= now / 1000000 - LONGEST_TOKEN then
      redis.call('HDEL', key('revoked-principals'), principals[index])
    end
  end
  local invites = redis.call('HGETALL', key('invites'))
  for index = 1, #invites, 2 do
    local id, invite = invites[index], cjson.decode(invites[index + 1])
    if invite.expires_at < now / 1000000 - KEEP_SECONDS then
      redis.call('HDEL', key('invites'), id)
      redis.call('HDEL', key('invites-used'), id)
      redis.call('SREM', key('revoked-invites'), id)
      if type(invite.name) == 'string' and redis.call('HGET', key('invite-names'), invite.name) == id then
        redis.call('HDEL', key('invite-names'), invite.name)
      end
    end
  end
end

-- As (jti, end)s.
local function revoked_tokens()
  return redis.call('ZRANGE', key('revoked-tokens'), now / 1000000, '+inf', 'BYSCORE', 'WITHSCORES')
end

-- Begins a day: its counts exist from now on, so that their loss is noticed.
local function begin_day()
  for _, counts in ipairs({'held', 'used'}) do
    redis.call('HSETNX', key(counts, today), '', 0)
    redis.call('EXPIRE', key(counts, today), KEEP_SECONDS)
  end
  redis.call('HSET', META, 'day', today)
  forget()
end

-- Rates by GCRA, as edge/store/gcra.py has them: one number, when the bucket will be empty again. It is never further
-- ahead than the period, unless the clock was set back since: then the bucket counts as full now. Behind it stands who
-- took last.
local PERIOD = 60000000
local MARGIN = 100 -- sums of 60 s / limit drift by a few microseconds

local function ahead(bucket)
  local by = tonumber(string.match(redis.call('GET', bucket) or '0', '^%S+')) - now
  if by > PERIOD + 2 * MARGIN then
    by = PERIOD
    redis.call('SET', bucket, string.format('%.17g', now + by), 'PX', PERIOD / 1000 + 1)
  end
  return math.max(0, by)
end

local function wait_of(ahead_by, limit)
  local over = ahead_by - PERIOD + PERIOD / limit
  return over > MARGIN and over or 0
end

local function take(bucket, ahead_by, limit, whom)
  local after = ahead_by + PERIOD / limit
  redis.call('SET', bucket, string.format('%.17g %s', now + after, whom or ''), 'PX', math.ceil(after / 1000) + 1)
  return after
end

-- Ends a chat, counting `tokens`, or what was reserved when that is nil. False when it has ended already.
local function finish(chat, tokens)
  local row = redis.call('HGET', CHATS, chat)
  if not row then
    return false
  end
  local edge, day, reserved, plan, principal = unpack(cjson.decode(row))
  tokens = tokens or reserved
  redis.call('HDEL', CHATS, chat)
  redis.call('SREM', key('edge', edge), chat)
  give_back(RUNNING, principal, 1)
  give_back(key('held', day), principal, reserved)
  if plan ~= '' then
    give_back(key('held', day), ' ' .. plan, reserved)
  end
  if tokens > 0 then
    redis.call('HINCRBY', key('used', day), principal, tokens)
    if plan ~= '' then
      redis.call('HINCRBY', key('used', day), ' ' .. plan, tokens)
    end
  end
  return true
end

local LEASE = 20000000 -- of an edge that is not heard of
local QUIET = 12000000 -- nobody at all was heard of: this server was away, which no edge can help

-- `edge` is alive. Leases of a clock that was set back since would last for as long as that.
local function renew(edge)
  local heard = count(META, 'heard')
  if now - heard > QUIET or heard > now then
    for _, other in ipairs(redis.call('ZRANGE', EDGES, 0, -1)) do
      redis.call('ZADD', EDGES, now + LEASE, other)
    end
  end
  redis.call('ZADD', EDGES, now + LEASE, edge)
  redis.call('HSET', META, 'heard', string.format('%d', now))
end

local SWEPT_AT_ONCE = 200 -- about a millisecond

-- Ends chats of dead edges at their estimates; returns how many.
local function sweep()
  local swept = 0
  for _, edge in ipairs(redis.call('ZRANGEBYSCORE', EDGES, '-inf', now)) do
    local chats = redis.call('SRANDMEMBER', key('edge', edge), SWEPT_AT_ONCE - swept)
    for _, chat in ipairs(chats) do
      if not finish(chat) then
        redis.call('SREM', key('edge', edge), chat)
      end
      swept = swept + 1
    end
    if swept >= SWEPT_AT_ONCE then
      return swept
    end
    redis.call('ZREM', EDGES, edge)
  end
  return swept
end
