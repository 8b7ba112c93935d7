import Glibc
import KernelABI
import Ring
import SystemCalls
import Targets

/// The loop of one queue in batch mode: a multishot command brings the tags of many requests, and one command commits
/// many. For the target nothing changes.
struct BatchLoop<T: Target>: RequestLoop, ~Copyable {
    var queue: Queue<T>
    var target: T
    var batch: Batch

    /// The first word of a fetch.
    static var fetchHead: UInt64 {
        SubmissionEntry.head(
            operation: IOUring.Operation.uringCommand,
            flags: IOUring.EntryFlags.fixedFile | IOUring.EntryFlags.bufferSelect, file: RingFiles.device)
    }

    init(queue: consuming Queue<T>, target: T, batch: consuming Batch) {
        precondition(T.submissions.entries(depth: queue.depth, batch: true) <= queue.ring.capacity)
        self.queue = queue
        self.target = target
        self.batch = batch
        // When the device stops, the driver ends the fetch, not the tags.
        self.queue.live = 1
    }

    /// Prepares all tags and starts the fetch. The driver accepts the tags as a whole or not at all.
    mutating func fetchAll() throws(SystemError) {
        pushPreparation()
        try queue.submitFetches()
    }

    mutating func pushPreparation() {
        for buffer in 0..<batch.buffers { batch.give(buffer) }
        batch.publish()
        for tag in 0..<queue.depth { batch.add(tag, result: 0, address: queue.buffer(of: tag)) }
        if let entry = batch.takeList(UblkIOCommand.prepareMany, head: queue.commandHead, counted: false) {
            queue.ring.push(entry)
        }
        pushFetch()
    }

    @inline(never)
    mutating func turn() -> Int {
        var completions: UInt32 = 1
        if T.submissions.hasSocket {
            let wanted = turnSocket(&queue, &target)
            if wanted < 0 { return wanted }
            completions = UInt32(truncatingIfNeeded: wanted)
            giveBackEnded()
            pushList()
        }
        // The completions of the lists are no reason to wake up: with them alone there is nothing to do.
        let status = queue.ring.submit(waitingFor: completions &+ batch.lists, forIO: queue.pending != 0)
        if T.submissions.hasSocket { queue.socket.pointee.ring.signalEvent(false) }
        if status < 0, !isPassing(status) { return status }
        return handleCompletions()
    }

    /// Handles all completions that have arrived, after a submission. None while the kernel, out of memory, has left a
    /// part of the submission: the list is its last part, and further requests would be added to a list that still
    /// waits to be taken.
    @inline(__always)
    mutating func handleCompletions() -> Int {
        if queue.ring.untaken != 0 { return 0 }
        batch.rewind()
        var completions = queue.ring.completions()
        if queue.counters.isSampleDue { beginSample(completions) }
        while let completion = completions.take() {
            let key = RequestKey(rawValue: completion.userData)
            if key.isCommand {
                let status = begin(completion)
                if status < 0 { return status }
            } else if key.isKind(.list) {
                let status = listEnded(key, completion.result)
                if status < 0 { return status }
            } else if !T.submissions.areSingle, key.isKind(.own) {
                let status = queue.finishOwn(completion, by: &target)
                if status < 0 { return status }
            } else {
                if !T.submissions.areSingle, !queue.ledger.finish(key) { return -Int(EPROTO) }
                queue.pending &-= 1
                let outcome = target.finish(key, result: completion.result, on: &queue)
                commit(key.tag, queue.descriptors[Int(key.tag)], outcome)
            }
        }
        queue.ring.finish(completions)
        if T.submissions.hasSocket {
            let status = handleSocket(&queue, &target)
            if status < 0 { return status }
        }
        if !T.submissions.areSingle { giveBackEnded() }
        pushList()
        queue.counters.endTurn()
        #if UBD_TEST_CRASH
            TestCrash.end(&queue)
        #endif
        return 0
    }

    /// The end of a wake-up: returns buffers and commits requests.
    @inline(__always)
    mutating func pushList() {
        batch.publish()
        if let entry = batch.takeList(UblkIOCommand.commitMany, head: queue.commandHead) { queue.ring.push(entry) }
    }

    /// Begins the requests that a completion of the fetch brings. Returns 0, or a negated errno as `turn` does.
    @inline(__always)
    mutating func begin(_ completion: CompletionEntry) -> Int {
        guard completion.result > 0, completion.flags & IOUring.CompletionFlags.buffer != 0 else {
            return fetchEnded(completion)
        }
        let buffer = completion.flags &>> 16
        let tags = batch.tags(inBuffer: buffer & (batch.buffers &- 1))
        let count = Int(completion.result) &>> 1
        queue.counters.take(UInt64(count))
        // The kernel sees it only at the end of this turn.
        batch.give(buffer)
        var index = 0
        // A range's iterator would check its end twice.
        while index != count {
            let tag = tags[index]
            index &+= 1
            guard tag < queue.depth else { return -Int(EPROTO) }
            if !T.submissions.areSingle, !queue.ledger.open(tag) { return -Int(EPROTO) }
            let descriptor = queue.descriptors[Int(tag)]
            queue.poison(tag, descriptor)
            #if UBD_TEST_CRASH
                if let outcome = queue.crash.outcome(descriptor) {
                    commit(tag, descriptor, outcome)
                    continue
                }
            #endif
            commit(tag, descriptor, target.begin(tag, descriptor, on: &queue))
        }
        return completion.flags & IOUring.CompletionFlags.more != 0 ? 0 : fetchEnded(completion)
    }

    @inline(__always)
    private mutating func commit(_ tag: UInt16, _ descriptor: UblkIODescriptor, _ outcome: Outcome) {
        if !T.submissions.areSingle, outcome != .pending { queue.ledger.close(tag) }
        settle(tag, descriptor, outcome)
    }

    @inline(__always)
    mutating func settle(_ tag: UInt16, _ descriptor: UblkIODescriptor, _ outcome: Outcome) {
        if outcome.hasMoved {
            queue.counters.complete(tag, descriptor, bytes: outcome.rawValue)
            batch.add(tag, result: outcome.rawValue, address: queue.buffer(of: tag))
        } else if outcome == .pending {
            queue.pending &+= 1
        } else {
            commitRare(tag, outcome)
        }
    }

    @inline(never)
    private mutating func commitRare(_ tag: UInt16, _ outcome: Outcome) {
        queue.counters.settle(tag, queue.descriptors[Int(tag)], outcome)
        batch.add(tag, result: outcome.rawValue, address: queue.buffer(of: tag))
    }

    /// Samples the first request that this turn begins; if it begins none, the next turn tries.
    @inline(never)
    private mutating func beginSample(_ completions: CompletionBatch) {
        var completions = completions
        while let completion = completions.take() {
            guard RequestKey(rawValue: completion.userData).isCommand, completion.result > 1,
                completion.flags & IOUring.CompletionFlags.buffer != 0
            else { continue }
            return queue.counters.beginSample(
                batch.tags(inBuffer: completion.flags &>> 16 & (batch.buffers &- 1))[0])
        }
    }

    /// The fetch has ended. When the driver is out of buffers it keeps the requests; this wake-up's buffers are
    /// returned at its end, before the driver sees the next fetch. When the device stops, the driver ends the fetch for
    /// good.
    @inline(never)
    private mutating func fetchEnded(_ completion: CompletionEntry) -> Int {
        if completion.result == UblkIOCommand.abortedResult {
            queue.live = 0
            return 0
        }
        guard completion.result > 0 || completion.result == -ENOBUFS else {
            return completion.result < 0 ? Int(completion.result) : -Int(EPROTO)
        }
        if completion.flags & IOUring.CompletionFlags.more == 0 { pushFetch() }
        return 0
    }

    private mutating func pushFetch() {
        queue.ring.push(
            .multishotCommand(
                head: BatchLoop.fetchHead, UblkIOCommand.fetchMany,
                payload: UblkIOCommand.batchPayload(queue: queue.number, flags: 0, count: 0, elementBytes: 2),
                bufferGroup: 0, userData: RequestKey(tag: 0, .command).rawValue))
    }

    /// The driver takes a list as a whole, unless it and the worker disagree about a request.
    @inline(__always)
    func listEnded(_ key: RequestKey, _ result: Int32) -> Int {
        if Int(result) == Int(key.tag) &* batch.elementBytes { return 0 }
        return result < 0 ? Int(result) : -Int(EPROTO)
    }
}
