import Glibc
import KernelABI
import Ring
import SystemCalls
import Targets

/// The loop of one queue: takes requests from the kernel, passes them to the target, commits results.
///
/// Generic and not an existential: the compiler makes one piece of the loop and its target. Queue and target are two
/// stored properties of one value, so that passing the queue to the target needs no run-time exclusivity check.
/// Tests/checks/engine-symbols and engine-instructions check both.
struct QueueLoop<T: Target>: RequestLoop, ~Copyable {
    var queue: Queue<T>
    var target: T

    init(queue: consuming Queue<T>, target: T) {
        self.queue = queue
        self.target = target
    }

    mutating func fetchAll() throws(SystemError) { try queue.fetchAll() }

    @inline(never)
    mutating func turn() -> Int {
        var completions: UInt32 = 1
        if T.submissions.hasSocket {
            let wanted = turnSocket(&queue, &target)
            if wanted < 0 { return wanted }
            completions = UInt32(truncatingIfNeeded: wanted)
            giveBackEnded()
        }
        let status = queue.ring.submit(waitingFor: completions, forIO: queue.pending != 0)
        if T.submissions.hasSocket { queue.socket.pointee.ring.signalEvent(false) }
        if status < 0, !isPassing(status) { return status }
        return handleCompletions()
    }

    /// Handles all completions that have arrived, after a submission.
    @inline(__always)
    mutating func handleCompletions() -> Int {
        var batch = queue.ring.completions()
        if queue.counters.isSampleDue { beginSample(batch) }
        while let completion = batch.take() {
            let key = RequestKey(rawValue: completion.userData)
            if !T.submissions.areSingle, key.isKind(.own) {
                let status = queue.finishOwn(completion, by: &target)
                if status < 0 { return status }
                continue
            }
            let descriptor = queue.descriptors[Int(key.tag)]
            let outcome: Outcome
            if key.isCommand {
                if completion.result != 0 {
                    let status = commandFailed(completion.result)
                    if status < 0 { return status }
                    continue
                }
                if !T.submissions.areSingle, !queue.ledger.open(key.tag) { return -Int(EPROTO) }
                queue.counters.take(1)
                queue.poison(key.tag, descriptor)
                #if UBD_TEST_CRASH
                    if let outcome = queue.crash.outcome(descriptor) {
                        if !T.submissions.areSingle { queue.ledger.close(key.tag) }
                        queue.commit(key.tag, descriptor, outcome)
                        continue
                    }
                #endif
                outcome = target.begin(key.tag, descriptor, on: &queue)
            } else {
                if !T.submissions.areSingle, !queue.ledger.finish(key) { return -Int(EPROTO) }
                queue.pending &-= 1
                outcome = target.finish(key, result: completion.result, on: &queue)
            }
            if !T.submissions.areSingle, outcome != .pending { queue.ledger.close(key.tag) }
            settle(key.tag, descriptor, outcome)
        }
        queue.ring.finish(batch)
        if T.submissions.hasSocket {
            let status = handleSocket(&queue, &target)
            if status < 0 { return status }
        }
        if !T.submissions.areSingle { giveBackEnded() }
        queue.counters.endTurn()
        #if UBD_TEST_CRASH
            TestCrash.end(&queue)
        #endif
        return 0
    }

    /// What is given back is queued at once.
    mutating func pushList() {}

    @inline(__always)
    mutating func settle(_ tag: UInt16, _ descriptor: UblkIODescriptor, _ outcome: Outcome) {
        if outcome.hasMoved {
            queue.commit(tag, descriptor, outcome)
        } else if outcome == .pending {
            queue.pending &+= 1
        } else {
            queue.commitRare(tag, outcome)
        }
    }

    /// Samples the first request that this turn begins; if it begins none, the next turn tries.
    @inline(never)
    private mutating func beginSample(_ batch: CompletionBatch) {
        var batch = batch
        while let completion = batch.take() {
            let key = RequestKey(rawValue: completion.userData)
            if key.isCommand, completion.result == 0 { return queue.counters.beginSample(key.tag) }
        }
    }

    /// The driver aborts the tags when the device stops. Any other error means that it and the worker disagree about a
    /// tag.
    @inline(never)
    private mutating func commandFailed(_ result: Int32) -> Int {
        guard result == UblkIOCommand.abortedResult else { return result < 0 ? Int(result) : -Int(EPROTO) }
        queue.live -= 1
        return 0
    }
}
