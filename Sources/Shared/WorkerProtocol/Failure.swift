/// Why a worker cannot serve.
public struct WorkerFailure: Error, Equatable, Sendable {
    public var step: Step
    /// The kernel's errno, positive; 0 when the worker itself refused.
    public var errno: Int32
    /// The index of a file in the client's message, a queue, or another number that depends on the step.
    public var detail: UInt64

    /// The failed step.
    public enum Step: UInt32, CaseIterable, Sendable {
        case launchMessage = 1
        case landlock
        case setupFilter
        case peekFiles
        case fileCount
        case fileStatus
        /// The next ones: kinds of file that cannot back a device.
        case fileIsDirectory
        case fileIsPipe
        case fileIsSocket
        case fileIsCharacterDevice
        case fileIsOther
        case fileIsPathOnly
        case fileIsAppendOnly
        case fileIsWriteOnly
        case fileNotWritable
        /// The next three: `detail` is the file system (FileSystem.code).
        case fileOnKernelFileSystem
        case fileOnOtherFileSystem
        case fileOnNetwork
        case fileIsUbdDevice
        /// The second descriptor is not the first file opened again.
        case filesDiffer
        case fileEmpty
        case offsetBeyondEnd
        case sizeBeyondEnd
        case smallerThanBlock
        case blockSizeTooSmall
        case offsetUnaligned
        case geometry
        case ring
        case ringSeal
        case memory
        case thread
        case fetch
        case mapDescriptors
        case loopFilter
        case controlMessage
    }

    public init(_ step: Step, errno: Int32 = 0, detail: UInt64 = 0) {
        self.step = step
        self.errno = errno
        self.detail = detail
    }

    func encode(to writer: inout ByteWriter) {
        writer.put(step.rawValue)
        writer.put(errno)
        writer.put(detail)
    }

    init?(from reader: inout ByteReader) {
        guard let step = Step(rawValue: reader.get()) else { return nil }
        self.step = step
        errno = reader.get()
        detail = reader.get()
        guard reader.intact, errno >= 0 else { return nil }
    }
}
