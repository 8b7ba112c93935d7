import Glibc
import Ring
import Synchronization
import SystemCalls

/// The discards and write-zeroes of a device. Its queues' threads hand them to the one thread that does them
/// (RangeThread). The board has a place for each tag of each queue, and a bell. It belongs to the process and is never
/// freed.
///
/// A ring's FALLOCATE can't be restricted to one mode, and the other modes allocate blocks past the end of the file,
/// which RLIMIT_FSIZE does not forbid. seccomp compares the mode of a system call (policy/seccomp/target-loop.policy).
/// So system calls do the ranges of a file. They block, so they need a thread of their own. The queue waits for a range
/// by a submission in its ring, as for everything else: FUTEX_WAIT on the place's word (Linux 6.7).
struct RangeBoard: Sendable {
    /// An operation on a range of the file.
    enum Kind: UInt32 {
        /// Its space is freed, and it reads as zeros.
        case discard = 1
        /// It reads as zeros; its space may be freed.
        case zero
        /// It reads as zeros and keeps its space.
        case zeroAllocated
    }

    /// The values of a place's word.
    private enum Word {
        static let asked: UInt32 = 1
        static let done: UInt32 = 2
    }

    /// Bytes of one place: word, kind, offset, bytes, result.
    private static let placeBytes = 32
    /// Bytes before the first place; they contain the bell.
    private static let headBytes = 64

    let queues: Int
    let depth: Int
    private let address: UInt

    init(queues: UInt16, depth: UInt16) throws(SystemError) {
        self.queues = Int(queues)
        self.depth = Int(depth)
        let bytes = RangeBoard.headBytes + Int(queues) * Int(depth) * RangeBoard.placeBytes
        let memory = mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        guard let memory, memory != MAP_FAILED else { throw SystemError("mmap", errno) }
        address = UInt(bitPattern: memory)
    }

    private func place(_ queue: Int, _ tag: Int) -> UnsafeMutableRawPointer {
        UnsafeMutableRawPointer(bitPattern: address)! + RangeBoard.headBytes
            + (queue * depth + tag) * RangeBoard.placeBytes
    }

    private func word(_ memory: UnsafeMutableRawPointer) -> UnsafeMutablePointer<Atomic<UInt32>> {
        memory.assumingMemoryBound(to: Atomic<UInt32>.self)
    }

    private var bell: UnsafeMutablePointer<Atomic<UInt32>> { word(UnsafeMutableRawPointer(bitPattern: address)!) }

    // MARK: For the queues' threads

    /// Hands a range over. `offset` and `bytes` of the file.
    func ask(_ kind: Kind, queue: UInt16, tag: UInt16, offset: UInt64, bytes: UInt64) {
        let place = place(Int(queue), Int(tag))
        place.storeBytes(of: kind.rawValue, toByteOffset: 4, as: UInt32.self)
        place.storeBytes(of: offset, toByteOffset: 8, as: UInt64.self)
        place.storeBytes(of: bytes, toByteOffset: 16, as: UInt64.self)
        word(place).pointee.store(Word.asked, ordering: .releasing)
        bell.pointee.add(1, ordering: .releasing)
        wakeWord(UnsafeRawPointer(bell))
    }

    /// The address on which the ring waits, and the value that it expects there.
    func waitingPoint(queue: UInt16, tag: UInt16) -> (address: UInt64, value: UInt32) {
        (UInt64(UInt(bitPattern: place(Int(queue), Int(tag)))), Word.asked)
    }

    /// 0 or a negated errno; nil while it is under way.
    func result(queue: UInt16, tag: UInt16) -> Int32? {
        let place = place(Int(queue), Int(tag))
        guard word(place).pointee.load(ordering: .acquiring) == Word.done else { return nil }
        return place.load(fromByteOffset: 24, as: Int32.self)
    }

    // MARK: For the range thread

    /// Does the requested ranges, one after another, and sleeps when there is none. Never returns.
    func serve(_ work: (Kind, _ offset: UInt64, _ bytes: UInt64) -> Int32) -> Never {
        while true {
            let heard = bell.pointee.load(ordering: .acquiring)
            if !serveOnce(work) { sleepOnWord(UnsafeRawPointer(bell), while: heard) }
        }
    }

    /// Does all ranges that are requested now; false when there is none.
    func serveOnce(_ work: (Kind, _ offset: UInt64, _ bytes: UInt64) -> Int32) -> Bool {
        var found = false
        for queue in 0..<queues {
            for tag in 0..<depth {
                let place = place(queue, tag)
                guard word(place).pointee.load(ordering: .acquiring) == Word.asked else { continue }
                found = true
                let kind = Kind(rawValue: place.load(fromByteOffset: 4, as: UInt32.self))
                let result =
                    kind.map {
                        work(
                            $0, place.load(fromByteOffset: 8, as: UInt64.self),
                            place.load(fromByteOffset: 16, as: UInt64.self))
                    } ?? -EINVAL
                place.storeBytes(of: result, toByteOffset: 24, as: Int32.self)
                word(place).pointee.store(Word.done, ordering: .releasing)
                wakeWord(UnsafeRawPointer(place))
            }
        }
        return found
    }
}

extension Queue {
    /// Submits the one submission of a request whose range is on the board: it completes when the range thread has done the range.
    /// Whatever its result, only `RangeBoard.result` counts.
    mutating func wait(for board: RangeBoard, _ tag: UInt16, slot: UInt8 = 0) {
        let (address, value) = board.waitingPoint(queue: number, tag: tag)
        let key = RequestKey(tag: tag, .control, slot: slot)
        push(.waitForWord(address: address, value: value, userData: key.rawValue))
    }
}
