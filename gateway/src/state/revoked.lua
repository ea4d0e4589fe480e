-- What is revoked, shared by all edges. Times and the name of a new memory are arguments, so that every copy of this
-- Redis does the same.
--
-- KEYS[1] hash: key -> revocation, JSON; those that were taken back too, until they would have been over
-- KEYS[2] sorted set: key -> the number of its last change
-- KEYS[3] sorted set: key -> when it is over, ms
-- KEYS[4] hash: epoch, which names this memory: another one begins when Redis has lost everything; seq, the last number
-- ARGV[1] now, ms; ARGV[2] a name for a memory that begins now
-- ARGV[3] "pull": ARGV[4] the memory that the caller knows, ARGV[5] the last change that it knows, ARGV[6] most to tell
--         -> { epoch, last change told, changes left, revocation... }
-- ARGV[3] "put": ARGV[4] most that may be kept, ARGV[5] "1" to replace what is there, then key, revocation, until, ...
--         -> { 1 } or, when there is no room and nothing was done, { 0 }
local entries, seqs, untils, head = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

for _, key in ipairs(redis.call('ZRANGEBYSCORE', untils, '-inf', ARGV[1], 'LIMIT', 0, 500)) do
  redis.call('HDEL', entries, key)
  redis.call('ZREM', seqs, key)
  redis.call('ZREM', untils, key)
end
if redis.call('HSETNX', head, 'epoch', ARGV[2]) == 1 then
  redis.call('DEL', entries, seqs, untils)
end

if ARGV[3] == 'pull' then
  local epoch, after = redis.call('HGET', head, 'epoch'), ARGV[5]
  if epoch ~= ARGV[4] then after = '0' end
  local changed = redis.call('ZRANGEBYSCORE', seqs, '(' .. after, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[6])
  local last = after
  local answer = { epoch, last, '0' }
  for i = 1, #changed, 2 do
    answer[#answer + 1] = redis.call('HGET', entries, changed[i])
    last = changed[i + 1]
  end
  answer[2] = last
  answer[3] = tostring(redis.call('ZCOUNT', seqs, '(' .. last, '+inf'))
  return answer
end

local new = 0
for i = 6, #ARGV, 3 do
  new = new + 1 - redis.call('HEXISTS', entries, ARGV[i])
end
if redis.call('HLEN', entries) + new > tonumber(ARGV[4]) then return { '0' } end
for i = 6, #ARGV, 3 do
  if ARGV[5] == '1' or redis.call('HEXISTS', entries, ARGV[i]) == 0 then
    local seq = redis.call('HINCRBY', head, 'seq', 1)
    redis.call('HSET', entries, ARGV[i], ARGV[i + 1])
    redis.call('ZADD', seqs, seq, ARGV[i])
    redis.call('ZADD', untils, ARGV[i + 2], ARGV[i])
  end
end
return { '1' }
