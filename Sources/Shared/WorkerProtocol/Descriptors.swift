/// The descriptors of a worker. The numbers are the same in every worker, so that a filter can name them, an
/// administrator can check them, and a restarted broker can take its ends back from a known place.
public enum WorkerDescriptor {
    /// 1 and 2 are /dev/null: a worker has nowhere to write but to the broker. 0 is /dev/zero.
    public static let standardStreams: ClosedRange<Int32> = 0...2
    /// /dev/zero: where a worker without a copy of the data gets zeros from for reads past the end of a file.
    public static let zeroes: Int32 = 0
    /// The worker's end of the control socket. Inherited.
    public static let control: Int32 = 3
    /// /dev/ublkcN, opened by the launcher in the worker's own process. Inherited.
    public static let device: Int32 = 4
    /// The end of the parking socket where the client's files lie. Arrives with the launch message, as the next ones.
    public static let parking: Int32 = 5
    /// The broker's end of the control socket, unused here: a restarted broker takes it back.
    public static let brokerEnd: Int32 = 6
    /// The statistics page, which the broker reads (StatisticsPage).
    public static let statistics: Int32 = 7
    /// The sandbox bundle; closed as soon as it is read.
    public static let bundle: Int32 = 8
    /// The first of the client's files. They take up to two numbers from here.
    public static let firstFile: Int32 = 8

    /// The descriptors that come with the launch message, in their order.
    public static let launchFiles: [Int32] = [parking, brokerEnd, statistics, bundle]
}
