/// Describes a target: all that `ubd`, broker and worker must know of it before its code runs. Command-line options and
/// their help, the checks of a request, the launch message, and the worker's limits follow from it.
public struct TargetManifest: Sendable {
    public let name: String
    /// Its number in launch messages. Numbers are never reused, since records of devices outlive versions.
    public let number: UInt32
    /// One sentence without a full stop.
    public let summary: String
    /// In the order in which their descriptors arrive.
    public let inputs: [TargetInput]
    /// In the order of the help text.
    public let options: [TargetOption]
    /// The modes to choose from automatically, best first. Measured: docs/performance.md.
    public let modes: [DataMode]
    public let queues: QueueChoice
    /// The constant that the target's code uses.
    public let submissions: Submissions
    /// Buffers of the largest request's size that each queue has beside one for each tag; the constant that the target's code uses.
    public let spareBuffers: UInt32
    /// The option that says how many bytes of memory the worker takes beside its buffers; nil: none.
    public let cacheOption: TargetOption.Number?
    public let workerData: WorkerData
    public let survival: Survival

    public enum QueueChoice: Sendable {
        /// As many as requested.
        case any
        /// One: the threads of several queues could not share the target's data.
        case one
        /// One for each connected socket among the inputs.
        case onePerConnection
    }

    /// Data that the target reads or changes itself, and that must therefore pass through the worker's memory.
    public struct WorkerData: Sendable {
        public let reads: Bool
        public let writes: Bool

        public init(reads: Bool, writes: Bool) {
            self.reads = reads
            self.writes = writes
        }

        public static let none = WorkerData(reads: false, writes: false)
    }

    /// What a replacement needs of the worker before it.
    public enum Survival: Sendable {
        /// Nothing beyond the launch message.
        case nothing
        /// The inputs, which stay parked.
        case inputs
        /// Inputs that no worker has used: a dead worker may have left replies to its requests in them. So the device waits, and
        /// its requests wait in the kernel, until its owner brings new ones (`Recover`), as `reconnect` and `on-lost` say.
        case freshInputs
        /// The inputs, and memory that holds the device's content.
        case memory
    }

    public init(
        name: String, number: UInt32, summary: String, inputs: [TargetInput] = [], options: [TargetOption] = [],
        modes: [DataMode], queues: QueueChoice = .any, submissions: Submissions,
        spareBuffers: UInt32 = 0, cacheOption: TargetOption.Number? = nil,
        workerData: WorkerData = .none, survival: Survival
    ) {
        self.name = name
        self.number = number
        self.summary = summary
        self.inputs = inputs
        self.options = options
        self.modes = modes
        self.queues = queues
        self.submissions = submissions
        self.spareBuffers = spareBuffers
        self.cacheOption = cacheOption
        self.workerData = workerData
        self.survival = survival
    }
}

extension TargetManifest: Equatable {
    public static func == (one: TargetManifest, other: TargetManifest) -> Bool { one.number == other.number }
}

// Derived properties.
extension TargetManifest {
    /// The options that a user can give.
    public var givenOptions: [TargetOption] { options.filter { !$0.isAgreed } }

    /// The inputs that a user names. A secret has no name: `ubd` makes it of what the user knows.
    public var givenInputs: [TargetInput] { inputs.filter { !$0.role.isMade } }

    /// One of its inputs is a secret.
    public var takesSecret: Bool { inputs.contains { $0.role == .secret } }

    /// The most descriptors of any device.
    public static let mostDescriptors = 16

    /// Its inputs are connections, not files.
    public var takesSockets: Bool { inputs.contains { $0.role == .sockets } }

    /// Its content lies in memory that `ubd` makes.
    public var isInMemory: Bool { inputs.contains { $0.role == .memory } }

    /// Its content has exactly the size that the request names: no file or server tells another.
    public var hasOwnSize: Bool { inputs.isEmpty || isInMemory || hasBlockMap }

    /// Each worker needs inputs that no other worker has used.
    public var needsFreshInputs: Bool { survival == .freshInputs }

    /// The option with this number; nil when the target has none.
    public func option(_ number: TargetOption.Number) -> TargetOption? { options.first { $0.number == number } }

    /// Buffers of a queue of this depth, in bytes of the largest request each.
    public func buffers(depth: UInt16) -> UInt32 { UInt32(depth) + min(spareBuffers, UInt32(depth)) }

    /// Bytes of memory that the worker takes beside its buffers, with these options.
    public func cacheBytes(_ options: DeviceOptions) -> UInt64 { cacheOption.flatMap { options[$0]?.number } ?? 0 }

    /// One of its inputs is a control file.
    public var takesControl: Bool { inputs.contains { $0.role == .control } }

    /// Whether the target supports this mode.
    public func takes(_ mode: DataMode) -> Bool {
        !mode.isZeroCopy || !(workerData.reads || workerData.writes)
    }

    /// The role of the input that a descriptor belongs to. `index`: its place among all of them; the last input has all that are
    /// left, and each before it has one.
    public func role(ofDescriptor index: Int) -> TargetInput.Role? {
        inputs.isEmpty ? nil : inputs[min(index, inputs.count - 1)].role
    }

    /// Whether a device may have this number of queues: where each has a connection, no more than there may be connections.
    public func accepts(queues: Int) -> Bool {
        self.queues != .onePerConnection || inputs.allSatisfy { $0.role != .sockets || $0.count.contains(queues) }
    }

    /// The number of input descriptors of a device with these options and queues.
    public func descriptors(_ options: DeviceOptions, queues: Int) -> ClosedRange<Int> {
        inputs.reduce(0...0) { sum, input in
            if input.role == .sockets, self.queues == .onePerConnection {
                return sum.lowerBound + queues...sum.upperBound + queues
            }
            let each = input.hasTwin && !options.buffered ? 2 : 1
            return sum.lowerBound + input.count.lowerBound...sum.upperBound + input.count.upperBound * each
        }
    }

    /// The number of them that a worker still has when it serves: it closes a secret as soon as it has read it.
    public func keptDescriptors(_ options: DeviceOptions, queues: Int) -> ClosedRange<Int> {
        let all = descriptors(options, queues: queues)
        let secrets = inputs.filter { $0.role == .secret }.reduce(0) { $0 + $1.count.upperBound }
        return all.lowerBound - secrets...all.upperBound - secrets
    }
}
