import Glibc
import KernelABI
import Ring
import Targets

/// Where the queue's turn with the control file is: it waits, reads the plan, writes what is new of the log, then the state if it has
/// changed. One submission at a time, all of them in one slot.
struct ControlTurn: Sendable {
    enum Step: UInt8 {
        case timer
        case plan
        case log
        case state
    }

    var step: Step = .timer
    /// The state has changed since it was written.
    var isChanged = false
    /// The control file says that this worker serves.
    var isOnRecord = false
    /// Records of the log that the file has, and the first of those that the write under way takes there.
    var logged: UInt64 = 0
    var writing: UInt64 = 0
}

extension FaultTarget {
    static let turnSlot: UInt8 = 0
    /// Microseconds between two looks at the plan.
    static let pause: UInt64 = 20_000

    mutating func start(on queue: inout Queue<FaultTarget>) {
        count(FaultControl.State.starts)
        writeState(on: &queue)
    }

    mutating func finishOwn(_ key: RequestKey, _ completion: CompletionEntry, on queue: inout Queue<FaultTarget>) {
        if key.slot == FaultTarget.drainSlot { return drained(completion.result, on: &queue) }
        switch turn.step {
        case .timer: readPlan(on: &queue)
        case .plan:
            if completion.result == Int32(FaultControl.block) { takePlan(on: &queue) }
            writeLog(on: &queue)
        case .log:
            // A write that failed is tried again in the next turn; one that was cut off goes on.
            let bytes = Int32(FaultControl.recordWords * 8)
            if completion.result > 0, completion.result % bytes == 0 {
                turn.logged = turn.writing + UInt64(completion.result / bytes)
                writeLog(on: &queue)
            } else {
                writeState(on: &queue)
            }
        case .state:
            if completion.result == Int32(FaultControl.block) { turn.isOnRecord = true } else { turn.isChanged = true }
            pauseTurn(on: &queue)
        }
    }

    private var turnKey: UInt64 { RequestKey(ownSlot: FaultTarget.turnSlot).rawValue }

    private mutating func pauseTurn(on queue: inout Queue<FaultTarget>) {
        turn.step = .timer
        let time = memory.time(Int(queue.depth), microseconds: FaultTarget.pause)
        queue.push(.timeout(address: time, userData: turnKey))
    }

    private mutating func readPlan(on queue: inout Queue<FaultTarget>) {
        turn.step = .plan
        queue.push(
            .read(
                file: FaultTarget.controlFile, into: UInt64(UInt(bitPattern: memory.plan)),
                length: UInt32(FaultControl.block), offset: UInt64(FaultControl.planOffset), userData: turnKey))
    }

    /// Writes records that the file does not have, up to the end of the log's memory; the rest comes next.
    private mutating func writeLog(on queue: inout Queue<FaultTarget>) {
        let (records, bytes) = (UInt64(FaultControl.records), FaultControl.recordWords * 8)
        let end = memory.state[FaultControl.State.logged]
        // Those that newer ones have replaced are gone.
        let first = max(turn.logged, end > records ? end - records : 0)
        guard first < end else { return turn.isChanged ? writeState(on: &queue) : pauseTurn(on: &queue) }
        let place = first % records
        let count = min(end - first, records - place)
        turn.step = .log
        turn.writing = first
        queue.push(
            .write(
                file: FaultTarget.controlFile,
                from: UInt64(UInt(bitPattern: memory.log)) + place * UInt64(bytes),
                length: UInt32(count) * UInt32(bytes), offset: UInt64(FaultControl.logOffset) + place * UInt64(bytes),
                flags: writeFlags, userData: turnKey))
    }

    private mutating func writeState(on queue: inout Queue<FaultTarget>) {
        turn.step = .state
        turn.isChanged = false
        queue.push(
            .write(
                file: FaultTarget.controlFile, from: UInt64(UInt(bitPattern: memory.state)),
                length: UInt32(FaultControl.block), offset: UInt64(FaultControl.stateOffset), flags: writeFlags,
                userData: turnKey))
    }

    // MARK: A plan

    /// Obeys the plan that was read, if it is another one.
    private mutating func takePlan(on queue: inout Queue<FaultTarget>) {
        typealias State = FaultControl.State
        // What a cut has left is being written: a plan that gives the power back comes after that.
        if memory.state[State.off] == 2 { return }
        // A plan that is being written has no valid sum; the next turn reads it again.
        guard let sequence = FaultControl.sequence(memory.plan), sequence != memory.state[State.sequence] else {
            return
        }
        turn.isChanged = true
        guard let head = FaultControl.decode(memory.plan, rules: memory.nextRules) else {
            memory.state[State.rejected] = sequence
            return
        }
        if head.sets != memory.state[State.sets] { beginAnew(head, on: &queue) }
        if head.power != memory.state[State.power] {
            memory.state[State.power] = head.power
            if head.power & 1 == 1 { cut(on: &queue) } else { restore() }
        }
        memory.state[State.sequence] = sequence
    }

    /// Other rules, another seed or another count: all of them begin anew, and what is stuck goes on.
    private mutating func beginAnew(_ head: FaultControl.Head, on queue: inout Queue<FaultTarget>) {
        typealias State = FaultControl.State
        for index in 0..<FaultPlan.mostRules {
            memory.state[State.matches + index] = 0
            memory.state[State.hits + index] = 0
            if index < head.count { memory.rules[index] = memory.nextRules[index] }
        }
        memory.forgetHealed()
        ruleCount = head.count
        seed = head.seed
        memory.state[State.sets] = head.sets
        memory.state[State.threshold] = head.cutAfter == 0 ? 0 : memory.state[State.writes] &+ head.cutAfter
        memory.state[State.stuck] = 0
        for tag in 0..<queue.depth where queue.requests[Int(tag)].phase == .stuck {
            queue.requests[Int(tag)] = FaultRequest()
            let outcome = execute(tag, on: &queue)
            if outcome != .pending { queue.complete(tag, outcome) }
        }
    }
}
