/// The descriptors of a worker. Their numbers are the same in every worker, so that a filter can name them, an
/// administrator can check them, and a restarted broker finds its ends.
public enum WorkerDescriptor {
    /// 0 is /dev/zero. 1 and 2 are /dev/null, so that a worker can write only to the broker.
    public static let standardStreams: ClosedRange<Int32> = 0...2
    /// /dev/zero: a worker in zero-copy mode reads zeros from it for a read beyond the end of a file.
    public static let zeroes: Int32 = 0
    /// The worker's end of the control socket. Inherited.
    public static let control: Int32 = 3
    /// /dev/ublkcN, opened by the launcher in the worker's process. Inherited.
    public static let device: Int32 = 4
    /// The end of the parking socket that holds the client's files. It arrives with the launch message, like the next
    /// ones.
    public static let parking: Int32 = 5
    /// The broker's end of the control socket. The worker keeps it unused for a restarted broker.
    public static let brokerEnd: Int32 = 6
    /// The statistics page, which the broker reads (StatisticsPage).
    public static let statistics: Int32 = 7
    /// The sandbox bundle; closed after reading.
    public static let bundle: Int32 = 8
    /// The first of the client's files.
    public static let firstFile: Int32 = 8

    /// The descriptors that arrive with the launch message, in order.
    public static let launchFiles: [Int32] = [parking, brokerEnd, statistics, bundle]
}
