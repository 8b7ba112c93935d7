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
        /// The kinds of socket that no device is served from; `detail` is the input's place, and where the step says so more.
        case fileIsNoSocket
        /// Neither AF_UNIX nor AF_INET nor AF_INET6; `detail`: the family.
        case socketFamily
        /// No stream, or a stream of another protocol than TCP; `detail`: the place.
        case socketProtocol
        /// It listens, or nobody is at its other end.
        case socketNotConnected
        /// Its options are not locked (SO_LOCK_FILTER).
        case socketNotLocked
        /// It leads to another host, which the access policy does not allow.
        case socketNotLocal
        /// It is one of the others once more.
        case socketTwice
        /// Something stands between it and TCP that is not TLS (TCP_ULP).
        case socketLayer
        /// What was agreed on with the server can't be: `detail` is the option's number.
        case agreement
        /// Several connections to a server that can have one only; `detail`: how many.
        case oneConnectionOnly
        /// Write-through, and a server that has neither FUA nor FLUSH.
        case noStableStorage
        /// Another device or program has locked bytes that the device is to get.
        case bytesInUse
        /// What is to hold a memory disk is no memfd that is sealed as it must be; `detail`: its seals, all bits for none.
        case memoryNotSealed
        /// The memfd of a memory disk has another size than the disk; `detail`: the memfd's, in bytes.
        case memorySize
        /// The secret is no key that the target takes; `detail`: its bytes.
        case secretUnusable
        /// The secret is a key, and not that of this device.
        case secretDiffers
        /// The rules of a fault device are none, or its control file is not of that kind; `detail`: 0 for the rules, else the file's bytes.
        case faultPlan
        /// An overlay's base can be written through the file that came for it.
        case baseWritable
        /// An overlay's layer is no writable regular file of the size that its blocks need; `detail`: its bytes.
        case layerUnusable
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
