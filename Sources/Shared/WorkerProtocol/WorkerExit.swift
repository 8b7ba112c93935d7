/// How a worker ends: the exit status of its process. The last two tell the broker what to say to the device's owner. A broker
/// that did not start the worker learns no status, and says less.
public enum WorkerExit {
    /// The driver has taken all requests back: the device is stopped.
    public static let done: Int32 = 0
    /// It could not start serving, and has said why.
    public static let failed: Int32 = 1
    /// Wrong use: not started by the broker.
    public static let usage: Int32 = 2
    /// The ring or the driver refused to go on; a replacement starts anew.
    public static let ringFailed: Int32 = 3
    /// The broker said something that has no meaning at that time.
    public static let protocolViolation: Int32 = 4
    /// A connection to its server is gone, or the server said that it goes. Nothing that was under way was given back: the next
    /// worker repeats it on new connections.
    public static let connectionLost: Int32 = 5
    /// Its server sent what is no reply to what was asked. As above; nothing of it was believed.
    public static let serverViolation: Int32 = 6
}
