extension BrokerAPI {
    /// `io.ubd.Broker` in Varlink's interface definition language (UAPI.20). Each comment is on lines of its own,
    /// before its subject, where every parser of the language accepts it. A test compares the text with the Swift types.
    public static let description = """
        # ubd: block devices for unprivileged users, served from userspace (Linux ublk).
        # The access policy decides who may do what. The caller is the user who connected to the socket.
        interface io.ubd.Broker

        # A device. Sizes are in bytes.
        type Device \(Device.declaration)

        # Limits of control groups. Null: no limit. userMemory and the limits of cpu and io apply to all devices of one
        # user together, the others to one device.
        type GroupLimits \(GroupLimits.declaration)

        # A change of a device.
        type Change \(DeviceChange.declaration)

        # Information for the caller about a call that succeeded.
        type Notice \(Notice.declaration)

        # The caller's limits in the access policy.
        type Limits \(Limits.declaration)

        # The committed requests of one operation.
        type OperationCount \(OperationCount.declaration)

        # The counters of a queue, or of all queues of a device, as the worker reports them.
        type Counts \(Counts.declaration)

        # The counters of a device. A replacement worker continues them.
        type DeviceStats \(DeviceStats.declaration)

        # Add a device. Must be called with more.
        # For a target that needs files there are two replies. The first one has files and parking, and carries a file
        # descriptor at the index given by parking: a SOCK_SEQPACKET socket. The client sends its files on it in one
        # message of one byte with at most that many descriptors, and closes the socket. For target loop these are the
        # file opened without O_DIRECT and, if O_DIRECT is wanted and works, the same file opened with it, in this
        # order. For target nbd they are connected sockets, exactly as many as the reply says: one for each queue of the
        # kernel's device. The last reply has device and notices. Closing the connection before the last reply undoes the call.
        # Over a transport without file descriptors only targets without files can be added.
        method Add\(AddRequest.declaration) -> \(AddReplyMembers.declaration)

        # Delete a device. Without force a device in use is left alone.
        method Delete\(DeleteRequest.declaration) -> \(NoParameters.declaration)

        # Replace the worker of a live device by one with the current program, without an error for the device's users.
        # upgraded is false when the worker has that program already. If the new program is not fit, the call fails and
        # the old worker serves on.
        method Upgrade\(UpgradeRequest.declaration) -> \(UpgradeReply.declaration)

        # Give a live device another size, without an error for the device's users. It gets another worker of the same
        # program, as in Upgrade. Needs Linux 6.16 or later. A partition table or file system on it does not change.
        method Resize\(ResizeRequest.declaration) -> \(ResizeReply.declaration)

        # Bring the inputs of a device that waits for them (state recovering). Must be called with more; the replies are
        # those of Add. After wrong inputs, or when the connection is closed before they arrive, the device keeps waiting.
        # A device of a file waits for it when broker and worker died together. It must be the same file.
        # A device of connections waits for fresh ones after every end of a worker. Only its owner can bring them.
        method Recover\(RecoverRequest.declaration) -> \(AddReplyMembers.declaration)

        # The caller's devices; root gets all devices. With more there is a reply for each device, in the order of their
        # numbers. The client reads them at its own pace; a device that is gone when its turn comes is omitted.
        # Without more there is one reply if it has at most 256 KiB; otherwise the error is ExpectedMore.
        method List\(ListRequest.declaration) -> \(ListReply.declaration)

        # The counters of the caller's devices; root gets all devices. With and without more as for List.
        method Stats\(StatsRequest.declaration) -> \(StatsReply.declaration)

        # The changes of the caller's devices; root gets those of all. Must be called with more. The first replies tell the
        # present state of each device, then comes one without change, then one for each change. A client that reads
        # slowly is told the last state of a device, not those in between. The call ends with its connection.
        method Monitor\(MonitorRequest.declaration) -> \(MonitorReply.declaration)

        # The broker, the host, and the caller's rights.
        method Info\(NoParameters.declaration) -> \(InfoReply.declaration)

        # Every error has message (what is wrong, with which value) and remedy (what to do next).
        # The access policy refuses.
        \(InterfaceError.declaration("NotPermitted"))

        # A limit of the access policy or of the host is reached. again: seconds until the same call may succeed, when
        # only time is needed.
        \(InterfaceError.declaration("QuotaReached"))

        # A temporary limit of the broker itself is reached: the same call succeeds later. The error may come before the
        # call is read; then the connection is closed.
        \(InterfaceError.declaration("LimitReached"))

        # A parameter or option has an invalid value.
        \(InterfaceError.declaration("InvalidOption"))

        # The file at this index cannot back a device.
        \(InterfaceError.declaration("BadFile"))

        # Another device has this id.
        \(InterfaceError.declaration("IdInUse"))

        # The device does not exist or is not the caller's.
        \(InterfaceError.declaration("NoSuchDevice"))

        # The device is in use.
        \(InterfaceError.declaration("Busy"))

        # The kernel lacks a feature.
        \(InterfaceError.declaration("KernelUnsupported"))

        # A step failed unexpectedly.
        \(InterfaceError.declaration("Failed"))

        """

    /// `org.varlink.service`, as UAPI.20 prints it.
    public static let serviceDescription = """
        # The Varlink Service Interface should be provided by every varlink service.
        # It describes the service and the interfaces it implements.
        interface org.varlink.service

        # Get a list of all the interfaces a service provides and information
        # about the implementation.
        method GetInfo() -> (
          vendor: string,
          product: string,
          version: string,
          url: string,
          interfaces: []string
        )

        # Get the description of an interface that is implemented by this service.
        method GetInterfaceDescription(interface: string) -> (description: string)

        # The requested interface was not found.
        error InterfaceNotFound (interface: string)

        # The requested method was not found
        error MethodNotFound (method: string)

        # The interface defines the requested method, but the service does not
        # implement it.
        error MethodNotImplemented (method: string)

        # One of the passed parameters is invalid.
        error InvalidParameter (parameter: string)

        # Client is denied access
        error PermissionDenied ()

        # Method is expected to be called with 'more' set to true, but wasn't
        error ExpectedMore ()

        # Method is expected to be called with 'upgrade' set to true, but wasn't
        error ExpectedUpgrade ()

        """
}
