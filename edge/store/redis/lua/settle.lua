-- Ends chats. ARGV[3], ARGV[4]: a chat id and its tokens, '' for what was reserved; and so on.
-- Replies echo, then 1 or 0 for each: whether it was this that ended it.

local reply = {ECHO}
for index = 3, #ARGV, 2 do
  reply[#reply + 1] = finish(ARGV[index], tonumber(ARGV[index + 1])) and 1 or 0
end
return reply
