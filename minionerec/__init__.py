"""What two or more stages of MiniOneRec share. Nothing here imports a stage."""
