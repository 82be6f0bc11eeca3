-- One request, and with a chat id one answer: all that it takes, or nothing and why. First it ends the chats that
-- ARGV[19], ARGV[20] and so on name, as settle.lua does, so that an answer costs its edge one call and not two.
--
-- ARGV[3]   the data's id that the edge knows            ARGV[11]  plan
-- ARGV[4]   principal                                    ARGV[12]  tokens a day of the whole plan
-- ARGV[5]   address, '' for none                         ARGV[13]  seats of the plan
-- ARGV[6]   requests a minute of the address             ARGV[14]  jti of a token that is good for so many answers
-- ARGV[7]   requests a minute of the principal           ARGV[15]  how many
-- ARGV[8]   answers at once                              ARGV[16]  microseconds until it ends
-- ARGV[9]   tokens a day                                 ARGV[17]  edge
-- ARGV[10]  tokens of this answer                        ARGV[18]  chat id, '' where no answer starts
-- '' is no limit.
--
-- Replies one line, which is quicker to read than a list: echo, 'ok' or what refused, microseconds to wait, now, ahead
-- of the principal and of the address in microseconds, tokens used and held today, answers running.

local data, principal, address = ARGV[3], ARGV[4], ARGV[5]
local per_address, per_minute, streams = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local per_day, tokens, plan = tonumber(ARGV[9]), tonumber(ARGV[10]), ARGV[11]
local together, seats = tonumber(ARGV[12]), tonumber(ARGV[13])
local jti, uses, ends_in = ARGV[14], tonumber(ARGV[15]), tonumber(ARGV[16])
local edge, chat = ARGV[17], ARGV[18]

local USED, HELD = key('used', today), key('held', today)
local caller_bucket, address_bucket = key('rate', principal), key('address', address)
local caller_ahead, address_ahead = 0, 0

local function reply(verdict, wait)
  return string.format('%s %s %d %d %d %d %d %d %d', ECHO, verdict, wait or 0, now, caller_ahead, address_ahead,
    count(USED, principal), count(HELD, principal), count(RUNNING, principal))
end

if whole() ~= data then
  return reply('lost')
end
for index = 19, #ARGV, 2 do
  finish(ARGV[index], tonumber(ARGV[index + 1]))
end
if redis.call('HEXISTS', USED, '') == 0 then
  begin_day()
end

if per_minute then
  caller_ahead = ahead(caller_bucket)
  if per_address then
    address_ahead = ahead(address_bucket)
  end
end
local asked = edge .. ECHO
if chat ~= '' and redis.call('HEXISTS', CHATS, chat) == 1 or chat == '' and per_minute
    and string.match(redis.call('GET', caller_bucket) or '', '%S+$') == asked then
  return reply('ok') -- asked once more, because the first reply was lost
end

if per_minute then
  local wait = per_address and wait_of(address_ahead, per_address) or 0
  if wait > 0 then
    return reply('address', wait)
  end
  wait = wait_of(caller_ahead, per_minute)
  if wait > 0 then
    return reply('caller', wait)
  end
end

if seats then
  local taken = key('seats', plan)
  redis.call('ZREMRANGEBYSCORE', taken, '-inf', now - DAY)
  if not redis.call('ZSCORE', taken, principal) and redis.call('ZCARD', taken) >= seats then
    local oldest = redis.call('ZRANGE', taken, 0, 0, 'WITHSCORES')[2]
    return reply('seats', oldest and oldest + DAY - now or 0)
  end
end
if chat ~= '' and uses and tonumber(redis.call('GET', key('uses', jti)) or 0) >= uses then
  return reply('exhausted')
end

local function over_load()
  if streams and count(RUNNING, principal) >= streams then
    return 'streams'
  end
  if per_day then
    local used = count(USED, principal) + tokens
    if used > per_day then
      return 'quota'
    end
    if used + count(HELD, principal) > per_day then
      return 'held'
    end
  end
  if together then
    local used = count(USED, ' ' .. plan) + tokens
    if used > together then
      return 'plan-quota'
    end
    if used + count(HELD, ' ' .. plan) > together then
      return 'plan-held'
    end
  end
end

if chat ~= '' then
  local refused = over_load()
  if refused and refused ~= 'quota' and refused ~= 'plan-quota' then
    renew(edge)
    if sweep() > 0 then
      refused = over_load()
    end
  end
  if refused then
    return reply(refused)
  end
end
if seats then
  redis.call('ZADD', key('seats', plan), now, principal)
  redis.call('PEXPIRE', key('seats', plan), DAY / 1000)
end
if per_minute then
  caller_ahead = take(caller_bucket, caller_ahead, per_minute, asked)
  if per_address then
    address_ahead = take(address_bucket, address_ahead, per_address)
  end
end
if chat ~= '' then
  if uses then
    redis.call('INCR', key('uses', jti))
    redis.call('PEXPIRE', key('uses', jti), math.max(1, math.ceil(ends_in / 1000)))
  end
  local shared = together and plan or ''
  redis.call('HSET', CHATS, chat, cjson.encode({edge, today, tokens, shared, principal}))
  redis.call('SADD', key('edge', edge), chat)
  redis.call('ZADD', EDGES, 'NX', now + LEASE, edge)
  redis.call('HINCRBY', RUNNING, principal, 1)
  redis.call('HINCRBY', HELD, principal, tokens)
  if together then
    redis.call('HINCRBY', HELD, ' ' .. plan, tokens)
  end
end
return reply('ok')
