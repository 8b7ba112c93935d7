import Glibc
import KernelABI
import Ring

/// The loop of one queue: takes requests from the kernel, lets the target work, gives results back.
///
/// Generic and not an existential: the compiler makes one piece of the loop and its target. Queue and target are two
/// stored properties of one value, so that lending the queue to the target needs no run-time exclusivity check.
/// Tests/checks/engine-symbols and engine-instructions watch over both.
struct QueueLoop<T: Target>: ~Copyable {
    var queue: Queue
    var target: T

    init(queue: consuming Queue, target: T) {
        self.queue = queue
        self.target = target
    }

    /// Submits what was pushed, waits for at least one completion, and handles all that are there. Returns 0, or a
    /// negated errno that leaves the queue useless: the process must end then, and its replacement starts anew.
    @inline(never)
    mutating func turn() -> Int {
        let status = queue.ring.submit(waitingFor: 1)
        if status < 0, !isPassing(status) { return status }
        var batch = queue.ring.completions()
        while let completion = batch.take() {
            let key = RequestKey(rawValue: completion.userData)
            let outcome: Outcome
            if key.isKind(.command) {
                if completion.result != 0 {
                    let status = commandFailed(completion.result)
                    if status < 0 { return status }
                    continue
                }
                queue.counters.taken &+= 1
                outcome = target.begin(key.tag, queue.descriptors[Int(key.tag)], on: &queue)
            } else {
                outcome = target.finish(key, result: completion.result, on: &queue)
            }
            if outcome != .pending { queue.commit(key.tag, outcome) }
        }
        queue.ring.finish(batch)
        queue.publish()
        return 0
    }

    /// A wait that a stopped and continued process, or a moment without memory, cut short: nothing is lost.
    @inline(never)
    private func isPassing(_ status: Int) -> Bool {
        status == -Int(EINTR) || status == -Int(EAGAIN) || status == -Int(EBUSY)
    }

    /// The driver takes tags back when the device stops. Anything else means that it and we disagree about a tag.
    @inline(never)
    private mutating func commandFailed(_ result: Int32) -> Int {
        guard result == UblkIOCommand.abortedResult else { return result < 0 ? Int(result) : -Int(EPROTO) }
        queue.live -= 1
        return 0
    }
}
