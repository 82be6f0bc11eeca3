-- How the caller ARGV[3] stands. Replies echo, now, microseconds ahead, tokens used and held today, answers running,
-- and the version of what edges know by heart.

local principal = ARGV[3]
return {
  ECHO, now, ahead(key('rate', principal)),
  count(key('used', today), principal), count(key('held', today), principal), count(RUNNING, principal),
  redis.call('HGET', META, 'version') or '',
}
