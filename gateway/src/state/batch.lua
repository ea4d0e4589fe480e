-- A batch of operations on shared state: every one is judged, and only if none refuses is anything written.
-- The same arithmetic as `run` in filters/src/state/mod.rs; a property test holds the two together. Numbers are
-- microseconds since 1970 and stay below 2^53, so that Lua's doubles are exact.
--
-- KEYS: where the memory's beginning is kept, then one for each operation.
-- ARGV: the time, empty for Redis's own; then for each operation its kind and two to three numbers:
--   take interval burst cost | remember ttl made_s | hold most lease | release place until
-- Answers a list for each operation: a code (see `answer` in redis.rs) and its numbers.

local now = tonumber(ARGV[1])
if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
end
-- Whole milliseconds, as everywhere.
now = now - now % 1000

local function ceil_ms(us)
    local up = us + 999
    return (up - up % 1000) / 1000
end

-- A plain number would lose digits.
local function text(number)
    return string.format('%.0f', number)
end

local function live(value)
    value = value and tonumber(value)
    return value and value > now and value or nil
end

-- The number that is kept says until when it counts; Redis's own expiry only makes room, a little later.
local SLACK_MS = 5000

local writes = {}
local function write(key, value)
    writes[#writes + 1] = { key, value }
end

-- When the memory began: with its first batch, and anew whenever Redis has lost it.
local since = redis.call('GET', KEYS[1])
if since then
    since = tonumber(since)
else
    since = now
    redis.call('SET', KEYS[1], text(since))
end

local function take(key, interval, burst, cost)
    local tolerance = interval * burst
    local tat = live(redis.call('GET', key)) or now
    if tat > now + tolerance then tat = now + tolerance end
    local after = tat + interval * cost
    local function allowance(at)
        local used = at - now
        local left = tolerance - used
        if left < 0 then left = 0 end
        return (left - left % interval) / interval, ceil_ms(used)
    end
    local earliest = after - tolerance
    if earliest <= now then
        write(key, after)
        return { 0, allowance(after) }
    end
    local remaining, reset = allowance(tat)
    return { 1, remaining, reset, ceil_ms(earliest - now) }
end

local function remember(key, ttl, made_s)
    if made_s < (since - since % 1000000) / 1000000 then return { 4 } end
    if live(redis.call('GET', key)) then return { 3 } end
    write(key, now + ttl)
    return { 2 }
end

local CHUNK = 128
local function hold(key, most, lease)
    local ends = now + lease
    local first_end = ends
    for from = 0, most - 1, CHUNK do
        local cells = {}
        for place = from, math.min(from + CHUNK, most) - 1 do
            cells[#cells + 1] = key .. '#' .. place
        end
        local values = redis.call('MGET', unpack(cells))
        for at = 1, #cells do
            local until_us = live(values[at])
            if not until_us then
                write(cells[at], ends)
                return { 5, from + at - 1, ends }
            end
            if until_us < first_end then first_end = until_us end
        end
    end
    return { 6, ceil_ms(first_end - now) }
end

local operations = {}
local at, number = 2, 2
while at <= #ARGV do
    local kind = ARGV[at]
    local numbers = kind == 'take' and 3 or 2
    local operation = { kind = kind, key = KEYS[number] }
    for n = 1, numbers do operation[n] = tonumber(ARGV[at + n]) end
    operations[#operations + 1] = operation
    at, number = at + numbers + 1, number + 1
end

-- Given back whatever becomes of the rest.
for _, operation in ipairs(operations) do
    if operation.kind == 'release' then
        local cell = operation.key .. '#' .. text(operation[1])
        if live(redis.call('GET', cell)) == operation[2] then redis.call('DEL', cell) end
    end
end

local REFUSES = { [1] = true, [3] = true, [4] = true, [6] = true }
local answers, refused = {}, false
for n, operation in ipairs(operations) do
    local answer
    if operation.kind == 'take' then
        answer = take(operation.key, operation[1], operation[2], operation[3])
    elseif operation.kind == 'remember' then
        answer = remember(operation.key, operation[1], operation[2])
    elseif operation.kind == 'hold' then
        answer = hold(operation.key, operation[1], operation[2])
    else
        answer = { 7 }
    end
    refused = refused or REFUSES[answer[1]] or false
    answers[n] = answer
end
if not refused then
    for _, cell in ipairs(writes) do
        redis.call('SET', cell[1], text(cell[2]), 'PX', text(ceil_ms(cell[2] - now) + SLACK_MS))
    end
end
return answers
