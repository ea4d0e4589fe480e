-- A batch of operations on shared state: every one is judged, and only if none refuses is anything written.
-- The same arithmetic as `run` in filters/src/state/mod.rs; a property test holds the two together. Numbers are
-- microseconds since 1970 and stay below 2^53, so that Lua's doubles are exact.
--
-- KEYS: where the memory's beginning is kept, and for how long was remembered, then one for each operation.
-- ARGV: the time, empty for Redis's own; then for each operation its kind and what belongs to it:
--   take interval burst cost shadow | spend most cost ends shadow | remember ttl made_s ahead_s window_s
--   hold most lease shadow | release place until | tally tenant requests cost refused until
-- `shadow` is 1 for what only would refuse.
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
local function write(key, value, until_us)
    writes[#writes + 1] = { key, value, until_us or value }
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

-- A number that says how much, not when: kept for an hour after its period, for edges whose clocks are behind.
local KEPT_MS = 3600000
local function spend(key, most, cost, ends_ms)
    local until_us = (ends_ms + KEPT_MS) * 1000
    local over = until_us <= now
    local spent = not over and tonumber(redis.call('GET', key) or 0) or 0
    local renews_ms = ends_ms - now / 1000
    if renews_ms < 0 then renews_ms = 0 end
    local after = spent + cost
    if after > most then
        return { 9, spent < most and most - spent or 0, renews_ms }
    end
    if not over then write(key, after, until_us) end
    return { 8, most - after, renews_ms }
end

-- The windows that nonces were remembered for, in seconds, and in which second each was used last. As
-- filters/src/state/windows.rs.
local SKEW_S, KEPT_S = 300, 4000
local now_s = (now - now % 1000000) / 1000000

local function may_have_forgotten(window_s, made_s)
    local used = redis.call('HGETALL', KEYS[2])
    for n = 1, #used, 2 do
        local narrower_s, last_s = tonumber(used[n]), tonumber(used[n + 1])
        if narrower_s < window_s and made_s <= last_s + SKEW_S and now_s - made_s > narrower_s then return true end
    end
    return false
end

-- Written once a second, not with each request.
local function note(window_s)
    local used = redis.call('HGETALL', KEYS[2])
    local noted = false
    for n = 1, #used, 2 do
        local last_s = tonumber(used[n + 1])
        if tonumber(used[n]) == window_s and last_s >= now_s then
            noted = true
        elseif last_s + KEPT_S < now_s then
            redis.call('HDEL', KEYS[2], used[n])
        end
    end
    if not noted then redis.call('HSET', KEYS[2], text(window_s), text(now_s)) end
end

local function remember(key, ttl, made_s, ahead_s, window_s)
    if made_s <= (since - since % 1000000) / 1000000 + ahead_s then return { 4 } end
    if window_s and may_have_forgotten(window_s, made_s) then return { 4 } end
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

-- What follows each kind; the tenant of a tally is text.
local FOLLOW = { take = 4, spend = 4, remember = 4, hold = 3, release = 2, tally = 5 }
local operations = {}
local at, number = 2, 3
while at <= #ARGV do
    local kind = ARGV[at]
    local operation = { kind = kind, key = KEYS[number] }
    for n = 1, FOLLOW[kind] do operation[n] = tonumber(ARGV[at + n]) end
    if kind == 'tally' then operation.tenant = ARGV[at + 1] end
    operations[#operations + 1] = operation
    at, number = at + FOLLOW[kind] + 1, number + 1
end

-- Given back whatever becomes of the rest.
for _, operation in ipairs(operations) do
    if operation.kind == 'release' then
        local cell = operation.key .. '#' .. text(operation[1])
        if live(redis.call('GET', cell)) == operation[2] then redis.call('DEL', cell) end
    end
end

local REFUSES = { [1] = true, [3] = true, [4] = true, [6] = true, [9] = true }
local SHADOW = { take = 4, spend = 4, hold = 3 }
local answers, refused = {}, false
for n, operation in ipairs(operations) do
    local answer
    if operation.kind == 'take' then
        answer = take(operation.key, operation[1], operation[2], operation[3])
    elseif operation.kind == 'spend' then
        answer = spend(operation.key, operation[1], operation[2], operation[3])
    elseif operation.kind == 'remember' then
        answer = remember(operation.key, operation[1], operation[2], operation[3], operation[4])
    elseif operation.kind == 'hold' then
        answer = hold(operation.key, operation[1], operation[2])
    elseif operation.kind == 'tally' then
        answer = { 11 }
    else
        answer = { 7 }
    end
    local shadow = SHADOW[operation.kind]
    if REFUSES[answer[1]] and shadow and operation[shadow] == 1 then answer = { 10 } end
    refused = refused or REFUSES[answer[1]] or false
    answers[n] = answer
end
if refused then
    -- Nothing was taken after all: this much is left.
    for n, operation in ipairs(operations) do
        if answers[n][1] == 0 then answers[n] = take(operation.key, operation[1], operation[2], 0) end
        if answers[n][1] == 8 then answers[n] = spend(operation.key, operation[1], 0, operation[3]) end
    end
else
    for _, operation in ipairs(operations) do
        if operation.kind == 'remember' and operation[4] then note(operation[4]) end
    end
    for _, cell in ipairs(writes) do
        redis.call('SET', cell[1], text(cell[2]), 'PX', text(ceil_ms(cell[3] - now) + SLACK_MS))
    end
end
-- Counted whatever becomes of the rest: of a tenant's day its requests, their cost, and what was refused.
for _, operation in ipairs(operations) do
    if operation.kind == 'tally' and operation[5] * 1000 > now then
        local requests, cost, refusals = operation[2], operation[3], operation[4]
        if refused then requests, cost, refusals = 0, 0, requests + refusals end
        for mark, add in pairs({ r = requests, c = cost, x = refusals }) do
            if add > 0 then redis.call('HINCRBY', operation.key, mark .. operation.tenant, text(add)) end
        end
        redis.call('PEXPIRE', operation.key, text(ceil_ms(operation[5] * 1000 - now) + SLACK_MS))
    end
end
return answers
