-- Who used or reserved tokens today or has answers running: their counts. ARGV[3]: one caller, '' for all.
-- Replies echo, then used, held and running as (principal, count)s.

local function counts(hash)
  if ARGV[3] ~= '' then
    return {ARGV[3], count(hash, ARGV[3])}
  end
  return redis.call('HGETALL', hash)
end

return {ECHO, counts(key('used', today)), counts(key('held', today)), counts(RUNNING)}
