/// A kind of device: all that `ubd`, the broker and the worker must know of it before its own code runs. Command-line options
/// and their help, the checks of a request, the launch message, and the limits of a worker follow from it.
public struct TargetManifest: Sendable {
    public let name: String
    /// Its number in launch messages. A number is never given to another target: records of devices outlive versions.
    public let number: UInt32
    /// One sentence without a full stop.
    public let summary: String
    /// In the order in which their descriptors arrive.
    public let inputs: [TargetInput]
    /// In the order of the help.
    public let options: [TargetOption]
    /// The modes that may be chosen for it when none is asked for, best first. Measured: docs/performance.md.
    public let modes: [DataMode]
    public let queues: QueueChoice
    /// The same constant as in the target's code.
    public let submissions: Submissions
    public let workerData: WorkerData
    public let survival: Survival

    public enum QueueChoice: Sendable {
        /// As many as are asked for.
        case any
        /// A single one: the target's own data can not be shared by threads.
        case one
        /// One for each connected socket among the inputs.
        case onePerConnection
    }

    /// Data that the target itself reads or changes, so that it must pass through the worker's memory in every mode.
    public struct WorkerData: Sendable {
        public let reads: Bool
        public let writes: Bool

        public init(reads: Bool, writes: Bool) {
            self.reads = reads
            self.writes = writes
        }

        public static let none = WorkerData(reads: false, writes: false)
    }

    /// What the next worker of a device needs of the last one.
    public enum Survival: Sendable {
        /// The launch message tells it all.
        case nothing
        /// The inputs, which stay parked.
        case inputs
        /// Memory that holds the device's content, beside the inputs.
        case memory
    }

    public init(
        name: String, number: UInt32, summary: String, inputs: [TargetInput] = [], options: [TargetOption] = [],
        modes: [DataMode], queues: QueueChoice = .any, submissions: Submissions,
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
        self.workerData = workerData
        self.survival = survival
    }
}

extension TargetManifest: Equatable {
    public static func == (one: TargetManifest, other: TargetManifest) -> Bool { one.number == other.number }
}

// What follows from it.
extension TargetManifest {
    /// The option of that number; nil when the target has none.
    public func option(_ number: TargetOption.Number) -> TargetOption? { options.first { $0.number == number } }

    /// The target can serve in that mode.
    public func takes(_ mode: DataMode) -> Bool {
        !mode.isZeroCopy || !(workerData.reads || workerData.writes)
    }

    /// How many descriptors the inputs of a device with these options and queues are.
    public func descriptors(_ options: DeviceOptions, queues: Int) -> ClosedRange<Int> {
        inputs.reduce(0...0) { sum, input in
            if input.role == .sockets, self.queues == .onePerConnection {
                return sum.lowerBound + queues...sum.upperBound + queues
            }
            let each = input.hasTwin && !options.buffered ? 2 : 1
            return sum.lowerBound + input.count.lowerBound...sum.upperBound + input.count.upperBound * each
        }
    }
}
