-- What wrk asks for, and how it tells what it has seen: one line of JSON, times in microseconds.

function request()
    return wrk.format("GET", "/authors/" .. math.random(1, 100))
end

function done(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format(
        '{"requests": %d, "us": %d, "p50_us": %d, "p99_us": %d, "errors": %d, "refused": %d}\n',
        summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
        errors.connect + errors.read + errors.write + errors.timeout, errors.status
    ))
end
